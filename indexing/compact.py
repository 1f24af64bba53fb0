"""Compacting an index: the space of rows and files that nothing needs is given back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64
from msgspec.structs import replace
from numpy import ndarray

from indexing.search.making import store_searcher
from indexing.store.folder import commit, double, orphans, read_manifest, sweep, writer_lock
from indexing.store.manifest import Manifest, Shard
from indexing.store.rows import SHARD_SIZE, StoredRows, read_failures, relist, write_shard
from matvit import progress_of


@dataclass(frozen=True, kw_only=True)
class CompactReport:
    """What compacting did.

    Attributes:
        rows: Stored rows that nobody could find, and are gone.
        shards: Shards that were written anew.
        bytes: Freed: the files removed, less those written instead.
        images: In the index.
        generation: Of the index now.
    """

    rows: int
    shards: int
    bytes: int
    images: int
    generation: int


def compact_index(path: Path, *, progress: bool) -> CompactReport:
    """Rewrite shards without dead rows and remove orphans; see `ImageIndex.compact`."""
    read_manifest(path)  # before a lock is made where no index is
    with writer_lock(path):
        before = read_manifest(path)
        after = before if before.plan is not None else _without_dead_rows(path, before, progress)
        if after != before:
            commit(path, after)
        written = {file.name: file.bytes for file in after.files}
        for file in before.files:
            written.pop(file.name, None)
        freed = 0
        if orphans(path, after):
            double(path)  # the state before would refer to files that are gone
            freed = sweep(path, after)
    return CompactReport(
        rows=before.counts.removed - after.counts.removed,
        shards=len({shard.number for shard in before.shards} - {s.number for s in after.shards}),
        bytes=freed - sum(written.values()),
        images=after.counts.images,
        generation=after.generation,
    )


def _without_dead_rows(path: Path, before: Manifest, progress: bool) -> Manifest:
    """Store what is live of shards with dead rows anew, and small shards together.

    Nothing that is there is touched: whatever happens meanwhile, the index stays as it was.
    """
    assert before.index is not None
    rows = StoredRows(path, before, before.shards)
    chosen = _shards_to_rewrite(rows)
    if not chosen.any():
        return before
    old = [shard for shard, out in zip(before.shards, chosen, strict=True) if out]
    kept = [shard for shard, out in zip(before.shards, chosen, strict=True) if not out]
    moving = rows.live[chosen[rows.shard_of_rows()[rows.live]]]
    new = _rewrite(path, rows, moving, before.next_shard, progress)
    shards, next_shard = (*kept, *new), before.next_shard + len(new)
    generation = before.generation + 1
    changed: dict[str, Any] = {"shards": shards, "next_shard": next_shard}
    if any(shard.failures and shard.failures.rows for shard in old):
        changed = relist(path, shards, next_shard, read_failures(path, before.failure_files))
    if before.index.file.rows > before.counts.images:
        vectors, ids, asked = rows.live_embeddings(), rows.ids[rows.live], before.index.request
        changed["index"] = store_searcher(path, generation, asked, vectors, ids, progress=progress)
    after = replace(
        before,
        generation=generation,
        counts=replace(before.counts, removed=0),
        tombstones=None,
        **changed,
    )
    _check_nothing_is_lost(path, rows, after)
    return after


def _shards_to_rewrite(rows: StoredRows) -> Bool[ndarray, " shards"]:
    """Those with dead rows or none, and those that are less than half full, unless it is one."""
    sizes = np.array([shard.metadata.rows for shard in rows.shards], dtype=np.int64)
    alive = np.bincount(rows.shard_of_rows()[rows.live], minlength=len(sizes))
    dirty = (alive < sizes) | (sizes == 0)
    small = alive < SHARD_SIZE // 2
    return np.asarray((dirty | small) if dirty.any() or small.sum() > 1 else dirty)


def _rewrite(
    path: Path, rows: StoredRows, moving: Int64[ndarray, " rows"], number: int, progress: bool
) -> Sequence[Shard]:
    """Copy rows, bit for bit, into new shards."""
    shards: list[Shard] = []
    with progress_of("compacting", len(moving), unit="img", shown=progress) as bar:
        for start in range(0, len(moving), SHARD_SIZE):
            run = moving[start : start + SHARD_SIZE]
            table = rows.metadata.take(pa.array(run))
            shards.append(
                write_shard(path, number + len(shards), rows.embeddings.raw(run), table, None)
            )
            bar.update(len(run))
    return shards


def _check_nothing_is_lost(path: Path, rows: StoredRows, after: Manifest) -> None:
    """Read back what was written, before anything refers to it."""
    new = StoredRows(path, after, after.shards)
    if not new.live_metadata().equals(rows.live_metadata()):
        raise RuntimeError(f"compacting {path} would lose images; nothing was changed")
    for start in range(0, len(new.live), SHARD_SIZE):
        run = slice(start, start + SHARD_SIZE)
        old_vectors, new_vectors = rows.live_embeddings().raw(run), new.live_embeddings().raw(run)
        if not np.array_equal(old_vectors, new_vectors):
            raise RuntimeError(f"compacting {path} would change embeddings; nothing was changed")
