"""Compacting an index: rows and files that nothing needs are given back, small ones joined."""

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
from indexing.store.folder import (
    commit,
    double,
    free_generation,
    free_shard,
    orphans,
    read_manifest,
    sweep,
    writer_lock,
)
from indexing.store.manifest import Manifest, Shard
from indexing.store.rows import (
    SHARD_SIZE,
    StoredRows,
    read_failures,
    relist,
    write_shard,
    write_tombstones,
)
from matvit import progress_of

MANY_SHARDS = 8
"""So many shards that are less than half full are written together."""


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


def join_small_shards(path: Path) -> int:
    """Write small shards together once there are many, so that files do not add up with additions.

    Only for the writer of an index. Large shards stay as they are, with their dead rows.

    Returns:
        The generation of the index now.
    """
    before = read_manifest(path)
    small = np.array([shard.metadata.rows < SHARD_SIZE // 2 for shard in before.shards])
    if small.sum() < MANY_SHARDS:
        return before.generation
    after = _rewritten(path, before, StoredRows(path, before, before.shards), small, False)
    commit(path, after)
    return after.generation


def _without_dead_rows(path: Path, before: Manifest, progress: bool) -> Manifest:
    """Store what is live of shards with dead rows anew, and small shards together."""
    rows = StoredRows(path, before, before.shards)
    chosen = _shards_to_rewrite(rows)
    return _rewritten(path, before, rows, chosen, progress) if chosen.any() else before


def _rewritten(
    path: Path,
    before: Manifest,
    rows: StoredRows,
    chosen: Bool[ndarray, " shards"],
    progress: bool,
) -> Manifest:
    """Store what is live of some shards anew, behind the others.

    Nothing that is there is touched: whatever happens meanwhile, the index stays as it was.
    """
    assert before.index is not None
    old = [shard for shard, out in zip(before.shards, chosen, strict=True) if out]
    kept = [shard for shard, out in zip(before.shards, chosen, strict=True) if not out]
    moves = chosen[rows.shard_of_rows()]
    moving, staying = rows.live[moves[rows.live]], np.flatnonzero(~moves)
    number, generation = free_shard(path, before), free_generation(path, before)
    new = _rewrite(path, rows, moving, number, progress)
    shards, next_shard = (*kept, *new), number + len(new)
    changed: dict[str, Any] = {"shards": shards, "next_shard": next_shard}
    if any(shard.failures and shard.failures.rows for shard in old):
        changed = relist(path, shards, next_shard, read_failures(path, before.failure_files))
    if before.index.file.rows > before.counts.images:
        vectors, ids, asked = rows.live_embeddings(), rows.ids[rows.live], before.index.request
        changed["index"] = store_searcher(path, generation, asked, vectors, ids, progress=progress)
    still_stored = np.intersect1d(rows.removed, rows.ids[staying])
    after = replace(
        before,
        generation=generation,
        counts=replace(before.counts, removed=len(staying) + len(moving) - len(rows.live)),
        tombstones=write_tombstones(path, generation, still_stored),
        **changed,
    )
    _check_nothing_is_lost(path, rows, moving, after)
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


def _check_nothing_is_lost(
    path: Path, rows: StoredRows, moved: Int64[ndarray, " rows"], after: Manifest
) -> None:
    """Read back what was written, before anything refers to it."""
    new = StoredRows(path, after, after.shards)
    if not new.live_metadata().equals(rows.live_metadata()):
        raise RuntimeError(f"compacting {path} would lose images; nothing was changed")
    copies = np.arange(len(new.ids) - len(moved), len(new.ids))
    for start in range(0, len(moved), SHARD_SIZE):
        run = slice(start, start + SHARD_SIZE)
        if not np.array_equal(rows.embeddings.raw(moved[run]), new.embeddings.raw(copies[run])):
            raise RuntimeError(f"compacting {path} would change embeddings; nothing was changed")
