"""Building an index: decode, embed at full size, store shard by shard, commit once at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from numpy import ndarray
from tqdm import tqdm

from indexing.corpus import RECORDS, Corpus, DecodedBatch, Failure
from indexing.embeddings import Embeddings
from indexing.flat import KIND, FlatIndex
from indexing.manifest import (
    MANIFEST,
    CorpusRecord,
    Counts,
    EncoderRecord,
    Manifest,
    PreprocessRecord,
    SearchRecord,
    Shard,
)
from indexing.shards import SHARD_SIZE, write_shard
from indexing.storage import FOLDERS, LOCK, commit, read_manifest, remove_data, store, writer_lock
from matvit.cost import count_macs
from matvit.embed import Encoder, embed

_GENERATION = 1
_NORM_TOLERANCE = 1e-3
_LEFT_BY_A_KILLED_BUILD = {LOCK, f"{MANIFEST}.tmp", *FOLDERS}


def build_index(
    encoder: Encoder, corpus: Corpus, path: Path, *, batch_size: int, progress: bool
) -> None:
    """Embed a corpus and store it as an index; see `ImageIndex.build`."""
    _check_encoder_is_whole(encoder)
    if len(corpus) == 0:
        raise ValueError(f"no images to index: the corpus at {corpus.root} is empty")
    with _new_index(path):
        with tqdm(total=len(corpus), desc="indexing", unit="img", disable=not progress) as bar:
            shards = _write_shards(encoder, corpus, path, batch_size, bar.update)
        commit(path, _finish(encoder, corpus, path, shards))


def _check_encoder_is_whole(encoder: Encoder) -> None:
    """Refuse a submodel cut from an encoder: it shares the fingerprint of the whole."""
    if not (largest := encoder.submodel(None)).is_full:
        raise ValueError(
            f"an index is embedded at full size, but {encoder.name} is only the submodel "
            f"{largest}; build it with the whole encoder and search it with this one"
        )


@contextmanager
def _new_index(path: Path) -> Iterator[None]:
    """Reserve an empty folder for one writer; leave nothing behind if the build fails."""
    _check_vacant(path)
    existed = path.exists()
    path.mkdir(parents=True, exist_ok=True)
    with writer_lock(path):
        _check_vacant(path)  # another build may have finished in between
        remove_data(path)
        try:
            yield
        except BaseException:
            if not (path / MANIFEST).exists():  # else it came too late to stop the build
                remove_data(path)
                with suppress(OSError):  # what matters is the error that brought us here
                    (path / LOCK).unlink()
                    if not existed:
                        path.rmdir()
            raise


def _check_vacant(path: Path) -> None:
    """Refuse a place that holds anything but what a killed build leaves.

    Raises:
        FileExistsError: If it does; the message says what.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file; an index is a folder, choose another name")
    if (path / MANIFEST).exists():
        raise FileExistsError(
            f"{path} already holds an index of {_describe_size(path)}; "
            "choose another folder or remove it"
        )
    names = {entry.name for entry in path.iterdir()}
    foreign = names if LOCK not in names else names - _LEFT_BY_A_KILLED_BUILD
    if foreign:
        raise FileExistsError(
            f"{path} is not empty and not an index (it holds {min(foreign)!r}); "
            "choose another folder"
        )


def _describe_size(path: Path) -> str:
    try:
        return f"{read_manifest(path).counts.images:,} images"
    except ValueError:
        return "images that cannot be read"


def _write_shards(
    encoder: Encoder, corpus: Corpus, path: Path, batch_size: int, advance: Callable[[int], object]
) -> list[Shard]:
    """Embed and store the whole corpus.

    Raises:
        ValueError: If not one image could be read.
    """
    shards: list[Shard] = []
    first_failure: Failure | None = None
    next_id = 0
    for number, start in enumerate(range(0, len(corpus), SHARD_SIZE)):
        run = corpus.subset(range(start, min(start + SHARD_SIZE, len(corpus))))
        vectors, records, failures = _embed_run(encoder, run, batch_size, advance)
        shards.append(write_shard(path, number, vectors, records, failures, next_id))
        next_id += records.num_rows
        first_failure = first_failure or next(iter(failures), None)
    if next_id == 0:
        assert first_failure is not None
        raise ValueError(
            f"none of the {len(corpus):,} images in {corpus.root} could be read; "
            f"the first is {first_failure.path}: {first_failure.message}"
        )
    return shards


def _embed_run(
    encoder: Encoder, corpus: Corpus, batch_size: int, advance: Callable[[int], object]
) -> tuple[Float32[ndarray, "images dim"], pa.Table, list[Failure]]:
    """Embed a run of images; the next ones are decoded meanwhile."""
    parts = [np.empty((0, encoder.config.embed_dim), dtype=np.float32)]
    columns: list[pa.RecordBatch] = []
    failures: list[Failure] = []
    for batch in corpus.decode(encoder.preprocess, batch_size=batch_size):
        if len(batch):
            parts.append(_embed_batch(encoder, batch))
        columns.append(batch.columns)
        failures += batch.failures
        advance(len(batch) + len(batch.failures))
    return np.concatenate(parts), pa.Table.from_batches(columns, RECORDS), failures


def _embed_batch(encoder: Encoder, batch: DecodedBatch) -> Float32[ndarray, "images dim"]:
    """Embed one batch and make sure that every row can be searched for.

    Raises:
        ValueError: If the encoder did not return one unit vector per image.
    """
    vectors = embed(encoder, batch.pixels, batch_size=len(batch))
    expected = (len(batch), encoder.config.embed_dim)
    if vectors.shape != expected:
        raise ValueError(f"encoder {encoder.name} returned {vectors.shape}, wanted {expected}")
    norms = np.linalg.norm(vectors, axis=1)
    for row in np.flatnonzero(~(np.abs(norms - 1) < _NORM_TOLERANCE)):  # NaN is caught too
        raise ValueError(
            f"encoder {encoder.name} has no direction for {batch.columns['path'][row]}: its "
            f"embedding has length {norms[row]}; check the weights of the encoder"
        )
    return vectors


def _finish(encoder: Encoder, corpus: Corpus, path: Path, shards: list[Shard]) -> Manifest:
    """Build the search structure over all shards and describe the whole."""
    images = sum(shard.embeddings.rows for shard in shards)
    dim = encoder.config.embed_dim
    embeddings = Embeddings(path, [shard.embeddings for shard in shards], dim)
    flat = FlatIndex.build(embeddings, np.arange(images))
    class_names = corpus.class_names
    return Manifest(
        generation=_GENERATION,
        next_id=images,
        counts=Counts(images=images, failures=sum(shard.failures.rows for shard in shards)),
        encoder=EncoderRecord(
            name=encoder.name,
            fingerprint=encoder.fingerprint,
            dim=dim,
            macs=count_macs(encoder.config, encoder.submodel(None)),
        ),
        preprocess=PreprocessRecord(
            spec=encoder.preprocess.to_dict(), fingerprint=encoder.preprocess.fingerprint
        ),
        corpus=CorpusRecord(
            root=str(corpus.root),
            kind=corpus.kind,
            images=len(corpus),
            class_names=None if class_names is None else tuple(class_names),
        ),
        shards=tuple(shards),
        index=SearchRecord(
            kind=KIND, file=store(path, f"index/knn_g{_GENERATION}.faiss", images, flat.write)
        ),
    )
