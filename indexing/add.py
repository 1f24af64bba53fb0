"""Adding to an index: what is new or changed is read, and embedded unless its content is known.

Like a build, an addition is committed shard by shard. What is committed waits in the manifest's
`staged`, where nobody searches it, until the last commit merges it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float16, Int64
from numpy import ndarray
from tqdm import tqdm

from indexing.changes import Changes, corpus_names, refuse_shared_names
from indexing.checks import check_encoder, check_whole
from indexing.corpus.corpus import Corpus, DecodedBatch
from indexing.corpus.decoding import DecodePool, Decoders
from indexing.embedding import embed_batch
from indexing.merge import AddReport, merge_staged, staged_failures
from indexing.records import NO_LABEL, RECORDS, Failure
from indexing.store.folder import commit, read_finished, writer_lock
from indexing.store.manifest import CorpusRecord, Manifest
from indexing.store.rows import (
    SHARD_SIZE,
    StoredRows,
    live_rows,
    metadata_table,
    read_failures,
    write_shard,
)
from matvit import Encoder


def add_images(
    encoder: Encoder,
    corpus: Corpus,
    path: Path,
    *,
    retry_failed: bool,
    remove_missing: bool,
    batch_size: int,
    progress: bool,
    workers: int | None = None,
    processes: bool = False,
) -> AddReport:
    """Bring an index up to date with its corpus; see `ImageIndex.add`."""
    check_whole(encoder)
    check_encoder(path, read_finished(path), encoder)
    names = corpus_names(corpus)
    with writer_lock(path):
        before = read_finished(path)
        check_encoder(path, before, encoder)
        now = _updated(path, before.adding or before.corpus, corpus)
        manifest = replace(before, adding=now)
        rows = StoredRows(path, before, (*before.shards, *before.staged))
        _refuse_shared_names(path, before, rows)
        failures = [(-1, failure) for failure in read_failures(path, before.failure_files)]
        failures += staged_failures(path, before)
        changes = Changes(corpus, names, rows, failures, retry_failed=retry_failed)
        stage = _Stage(encoder, changes, rows, path, _label_numbers(now, corpus))
        with (
            DecodePool(encoder.preprocess, Decoders(workers, processes, batch_size)) as pool,
            tqdm(total=len(changes.todo), desc="adding", unit="img", disable=not progress) as bar,
        ):
            for start in range(0, len(changes.todo), SHARD_SIZE):
                run = corpus.subset(changes.todo[start : start + SHARD_SIZE])
                batches = run.decode_with(pool)
                manifest = stage.store(batches, manifest, bar.update)
        return merge_staged(path, before, manifest, names if remove_missing else None)


def _updated(path: Path, old: CorpusRecord, corpus: Corpus) -> CorpusRecord:
    """Describe the corpus as it is now; classes keep their numbers, new ones come last.

    Raises:
        ValueError: If it is another corpus.
    """
    if (old.root, old.kind) != (str(corpus.root), corpus.kind):
        raise ValueError(
            f"{path} holds images of the {old.kind} {old.root}, so the {corpus.kind} "
            f"{corpus.root} cannot be added to it; put the images there or build another index"
        )
    names = old.class_names
    if corpus.class_names is not None:
        known = names or ()
        names = (*known, *(name for name in corpus.class_names if name not in set(known)))
    return replace(old, images=len(corpus), class_names=names)


def _label_numbers(record: CorpusRecord, corpus: Corpus) -> Sequence[int]:
    """Number in the index of each class of the corpus, and of no class as the last one."""
    number = {name: label for label, name in enumerate(record.class_names or ())}
    return [*(number[name] for name in corpus.class_names or ()), NO_LABEL]


def _refuse_shared_names(path: Path, manifest: Manifest, rows: StoredRows) -> None:
    """Refuse an index in which a name stands for several images, staged ones aside."""
    searched = sum(shard.metadata.rows for shard in manifest.shards)
    live = live_rows(rows.ids[:searched], rows.removed)
    refuse_shared_names(rows.metadata.column("path").take(live), f"images in {path}")


class _Stage:
    """Reads runs of images and stores them as shards that wait to be merged.

    Args:
        encoder: A whole encoder.
        changes: Knows which images are stored already, maybe under other names.
        rows: Where their embeddings are.
        path: The index.
        labels: Number in the index of each class of the corpus.
    """

    def __init__(
        self,
        encoder: Encoder,
        changes: Changes,
        rows: StoredRows,
        path: Path,
        labels: Sequence[int],
    ) -> None:
        self._encoder, self._changes, self._rows = encoder, changes, rows
        self._path = path
        self._labels: Int64[ndarray, " labels"] = np.array(labels, dtype=np.int64)

    def store(
        self,
        batches: Iterable[DecodedBatch],
        manifest: Manifest,
        advance: Callable[[int], object],
    ) -> Manifest:
        """Embed one run of images and commit it."""
        vectors: list[Float16[ndarray, "images dim"]] = []
        columns: list[pa.RecordBatch] = []
        ids: list[int] = []
        failures: list[Failure] = []
        next_id = manifest.next_id
        for batch in batches:
            names, digests = (batch.columns[name].to_pylist() for name in ("path", "sha256"))
            sources = list(map(self._changes.row_of, names, digests))
            vectors.append(self._vectors(batch, sources))
            for name, source in zip(names, sources, strict=True):
                if source is not None and self._changes.keep_id(source, name):
                    ids.append(int(self._rows.ids[source]))
                else:
                    ids.append(next_id)
                    next_id += 1
            columns.append(self._relabelled(batch.columns))
            failures += batch.failures
            advance(batch.images)
        table = metadata_table(columns, ids)
        shard = write_shard(
            self._path, manifest.next_shard, np.concatenate(vectors), table, failures
        )
        manifest = replace(
            manifest,
            next_id=next_id,
            next_shard=manifest.next_shard + 1,
            staged=(*manifest.staged, shard),
        )
        commit(self._path, manifest)
        return manifest

    def _relabelled(self, columns: pa.RecordBatch) -> pa.RecordBatch:
        """Number the classes as the index does."""
        place = RECORDS.get_field_index("label")
        labels = pa.array(self._labels[columns["label"].to_numpy()])
        return columns.set_column(place, RECORDS.field(place), labels)

    def _vectors(
        self, batch: DecodedBatch, sources: Sequence[int | None]
    ) -> Float16[ndarray, "images dim"]:
        """Copy the embeddings that are stored already, compute the others."""
        rows: Int64[ndarray, " images"] = np.array(
            [-1 if row is None else row for row in sources], dtype=np.int64
        )
        new = rows < 0
        fresh = batch.columns["path"].filter(pa.array(new))
        vectors = np.empty((len(rows), self._encoder.config.embed_dim), dtype=np.float16)
        vectors[new] = embed_batch(self._encoder, batch.pixels[new], fresh)
        vectors[~new] = self._rows.embeddings.raw(rows[~new])
        return vectors
