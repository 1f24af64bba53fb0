"""Building an index: decode, embed at full size, commit shard by shard, then make it searchable.

Each shard is committed as soon as it is stored, so a build that is stopped, by whatever, loses at
most the shard it was at; the same call goes on behind the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from indexing.checks import check_encoder, check_whole, describe
from indexing.corpus.corpus import Corpus
from indexing.corpus.decoding import DecodePool, Decoders
from indexing.embedding import embed_batch
from indexing.records import Failure
from indexing.search.gpu import gpu_count
from indexing.search.kinds import resolve
from indexing.search.making import store_searcher
from indexing.search.request import KindRequest
from indexing.store.files import check_hash, check_size
from indexing.store.folder import (
    FOLDERS,
    LOCK,
    PREVIOUS,
    commit,
    read_manifest,
    remove_index,
    way_back,
    writer_lock,
)
from indexing.store.manifest import MANIFEST, CorpusRecord, Counts, Manifest, Plan, Shard
from indexing.store.rows import SHARD_SIZE, StoredRows, metadata_table, read_failures, write_shard
from matvit import Encoder

_LEFT_BY_A_KILLED_BUILD = {LOCK, f"{MANIFEST}.tmp", *FOLDERS}


def build_index(
    encoder: Encoder,
    corpus: Corpus,
    path: Path,
    *,
    request: KindRequest,
    batch_size: int,
    progress: bool,
    workers: int | None = None,
    processes: bool = False,
) -> None:
    """Embed a corpus and store it as an index, or finish doing so; see `ImageIndex.build`."""
    check_whole(encoder)
    if len(corpus) == 0:
        raise ValueError(f"no images to index: the corpus at {corpus.root} is empty")
    resolve(request, len(corpus), encoder.config.embed_dim)  # or hours end in an error
    with _new_index(path) as begun:
        if begun is None:
            manifest = _begin(encoder, corpus)
            remove_index(path)  # what is left of a build that was killed before its first commit
        else:
            manifest = _resume(encoder, corpus, path, begun)
        assert manifest.plan is not None
        done = min(len(manifest.staged) * manifest.plan.shard_size, len(corpus))
        with (
            DecodePool(encoder.preprocess, Decoders(workers, processes, batch_size)) as pool,
            tqdm(
                total=len(corpus), initial=done, desc="indexing", unit="img", disable=not progress
            ) as bar,
        ):
            manifest = _stage_shards(encoder, corpus, path, manifest, pool, bar.update)
        device = "auto" if built_on(encoder) == "cuda" else "cpu"
        commit(path, _finish(path, manifest, request, device, progress))


def built_on(encoder: Encoder) -> str:
    """Where FAISS trains and fills: on the GPU if the encoder is on one and FAISS sees one."""
    return "cuda" if encoder.device.type == "cuda" and gpu_count() else "cpu"


@contextmanager
def _new_index(path: Path) -> Iterator[Manifest | None]:
    """Reserve a folder for one writer; leave nothing behind if the build fails before a commit.

    Yields:
        The state of an unfinished build, if there is one.
    """
    _check_vacant(path)
    existed = path.exists()
    path.mkdir(parents=True, exist_ok=True)
    with writer_lock(path):
        _check_vacant(path)  # another build may have finished in between
        try:
            yield read_manifest(path) if (path / MANIFEST).exists() else None
        except BaseException:
            if not (path / MANIFEST).exists():
                with suppress(OSError):  # what matters is the error that brought us here
                    remove_index(path)
                    (path / LOCK).unlink()
                    if not existed:
                        path.rmdir()
            raise


def _check_vacant(path: Path) -> None:
    """Refuse a place that holds anything but an unfinished build or what a killed one leaves.

    Raises:
        FileExistsError: If it does; the message says what.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file; an index is a folder, choose another name")
    if (path / MANIFEST).exists():
        _check_unfinished(path)
        return
    names = {entry.name for entry in path.iterdir()}
    if {LOCK, PREVIOUS} <= names:  # no build leaves these without a manifest: there was an index
        raise FileExistsError(
            f"{path} holds an index whose {MANIFEST} is gone{way_back(path)}; "
            "or choose another folder"
        )
    foreign = names if LOCK not in names else names - _LEFT_BY_A_KILLED_BUILD
    if foreign:
        raise FileExistsError(
            f"{path} is not empty and not an index (it holds {min(foreign)!r}); "
            "choose another folder"
        )


def _check_unfinished(path: Path) -> None:
    try:
        manifest = read_manifest(path)
    except ValueError:
        size = "images that cannot be read"
    else:
        if manifest.plan is not None:
            return
        size = f"{manifest.counts.images:,} images"
    raise FileExistsError(
        f"{path} already holds an index of {size}; "
        "add to it with `matvit index add`, choose another folder or remove it"
    )


def _begin(encoder: Encoder, corpus: Corpus) -> Manifest:
    """Describe a build that has stored nothing yet."""
    by, prepared = describe(encoder)
    class_names = corpus.class_names
    return Manifest(
        generation=0,
        next_id=0,
        next_shard=0,
        counts=Counts(images=0, failures=0, removed=0),
        encoder=by,
        preprocess=prepared,
        corpus=CorpusRecord(
            root=str(corpus.root),
            kind=corpus.kind,
            images=len(corpus),
            class_names=None if class_names is None else tuple(class_names),
        ),
        shards=(),
        staged=(),
        plan=Plan(list_sha256=corpus.list_sha256, shard_size=SHARD_SIZE),
        adding=None,
        tombstones=None,
        failures=None,
        index=None,
    )


def _resume(encoder: Encoder, corpus: Corpus, path: Path, begun: Manifest) -> Manifest:
    """Check that an unfinished build is the same job, and drop shards that are damaged.

    Raises:
        IndexMismatchError: If it was begun by another encoder or preprocessing.
        ValueError: If it was begun with another list of images.
    """
    check_encoder(path, begun, encoder)
    assert begun.plan is not None
    old = begun.corpus
    same = (old.root, old.images, begun.plan.list_sha256)
    if same != (str(corpus.root), len(corpus), corpus.list_sha256):
        raise ValueError(
            f"{path} was begun with another list of images: {old.images:,} in {old.root}, now "
            f"{len(corpus):,} in {corpus.root}; put files that were added, renamed or removed "
            "back as they were, or remove the index and start again"
        )
    intact = tuple(takewhile(lambda shard: _is_intact(path, shard), begun.staged))
    if intact == begun.staged:
        return begun
    next_id = sum(shard.metadata.rows for shard in intact)
    return replace(begun, staged=intact, next_id=next_id, next_shard=len(intact))


def _is_intact(path: Path, shard: Shard) -> bool:
    try:
        for file in shard.files:
            check_size(path, file)
            check_hash(path, file)
    except ValueError:
        return False
    return True


def _stage_shards(
    encoder: Encoder,
    corpus: Corpus,
    path: Path,
    manifest: Manifest,
    pool: DecodePool,
    advance: Callable[[int], object],
) -> Manifest:
    """Embed, store and commit the shards that are not there yet."""
    assert manifest.plan is not None
    size = manifest.plan.shard_size
    for start in range(len(manifest.staged) * size, len(corpus), size):
        run = corpus.subset(range(start, min(start + size, len(corpus))))
        manifest = _stage_shard(encoder, run, path, manifest, pool, advance)
    return manifest


def _stage_shard(
    encoder: Encoder,
    run: Corpus,
    path: Path,
    manifest: Manifest,
    pool: DecodePool,
    advance: Callable[[int], object],
) -> Manifest:
    """Embed one run of images and commit it; the next ones are decoded meanwhile."""
    vectors: list[np.ndarray] = []
    columns: list[pa.RecordBatch] = []
    failures: list[Failure] = []
    for batch in run.decode_with(pool):
        vectors.append(embed_batch(encoder, batch.pixels, batch.columns["path"]))
        columns.append(batch.columns)
        failures += batch.failures
        advance(batch.images)
    next_id = manifest.next_id + sum(map(len, vectors))
    table = metadata_table(columns, range(manifest.next_id, next_id))
    shard = write_shard(path, manifest.next_shard, np.concatenate(vectors), table, failures)
    manifest = replace(
        manifest,
        next_id=next_id,
        next_shard=manifest.next_shard + 1,
        staged=(*manifest.staged, shard),
    )
    commit(path, manifest)
    return manifest


def _finish(
    path: Path, manifest: Manifest, request: KindRequest, device: str, progress: bool
) -> Manifest:
    """Build the search structure over all shards and describe the whole.

    Raises:
        ValueError: If not one image could be read; nothing of the index is left then.
    """
    lists = [shard.failures for shard in manifest.staged if shard.failures is not None]
    rows = StoredRows(path, manifest, manifest.staged)
    if not len(rows.ids):
        first = read_failures(path, lists)[0]
        remove_index(path)
        raise ValueError(
            f"none of the {manifest.corpus.images:,} images in {manifest.corpus.root} could be "
            f"read; the first is {first.path}: {first.message}"
        )
    index = store_searcher(
        path, 1, request, rows.embeddings, rows.ids, device=device, progress=progress
    )
    failed = sum(file.rows for file in lists)
    return replace(
        manifest,
        generation=1,
        counts=Counts(images=len(rows.ids), failures=failed, removed=0),
        shards=manifest.staged,
        staged=(),
        plan=None,
        index=index,
    )
