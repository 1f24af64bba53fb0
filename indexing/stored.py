"""Rows as the files of an index hold them, and which of them are live."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from numpy import ndarray

from indexing.embeddings import Embeddings
from indexing.manifest import MANIFEST, Manifest, Shard, StoredFile
from indexing.shards import METADATA, read_tables
from indexing.storage import check_hash, damaged, store


class StoredRows:
    """All rows of some shards, dead ones too.

    A row is live if its id was not removed and no later row has the same id: an image that was
    renamed keeps its id and gets a new row.

    Args:
        folder: The index.
        manifest: Its state.
        shards: Which shards, in order; later rows count.

    Attributes:
        metadata: pyarrow table, one row per stored row.
        ids: int64, shape (rows,).
        removed: Ids that were removed, ascending.
        live: Rows that are live, by ascending id.

    Raises:
        ValueError: If a file is damaged.
    """

    def __init__(self, folder: Path, manifest: Manifest, shards: Sequence[Shard]) -> None:
        self._folder, self._dim = folder, manifest.encoder.dim
        self.shards = tuple(shards)
        self.metadata = read_tables(folder, [shard.metadata for shard in shards], METADATA)
        self.ids = column(self.metadata, "id")
        if len(self.ids) and not 0 <= self.ids.min() <= self.ids.max() < manifest.next_id:
            raise damaged(folder / MANIFEST, f"next_id is {manifest.next_id}, below ids in use")
        self.removed = read_tombstones(folder, manifest.tombstones)
        self.live = live_rows(self.ids, self.removed)

    @cached_property
    def embeddings(self) -> Embeddings:
        """One row per stored row."""
        return Embeddings(self._folder, [shard.embeddings for shard in self.shards], self._dim)

    @property
    def all_live_in_order(self) -> bool:
        """Whether the live rows are all rows, as they come: true of an index never updated."""
        return len(self.live) == len(self.ids) and bool((np.diff(self.live) == 1).all())

    def live_metadata(self) -> pa.Table:
        """The rows of `metadata` that are live, by ascending id."""
        return self.metadata if self.all_live_in_order else self.metadata.take(pa.array(self.live))

    def live_embeddings(self) -> Embeddings:
        """The rows of `embeddings` that are live, by ascending id."""
        return self.embeddings if self.all_live_in_order else self.embeddings.take(self.live)

    def hidden_too(self) -> Int64[ndarray, " rows"]:
        """Last row of each id, of those removed too, by ascending id: whatever is searched."""
        return live_rows(self.ids, np.empty(0, dtype=np.int64)) if len(self.removed) else self.live

    def shard_of_rows(self) -> Int64[ndarray, " rows"]:
        """Place in `shards` of the shard of each row."""
        rows = np.array([shard.metadata.rows for shard in self.shards], dtype=np.int64)
        return np.repeat(np.arange(len(rows)), rows)


def live_rows(
    ids: Int64[ndarray, " rows"], removed: Int64[ndarray, " removed"]
) -> Int64[ndarray, " live"]:
    """Last row of each id that was not removed, by ascending id."""
    order = np.argsort(ids, kind="stable")
    by_id = ids[order]
    last = np.append(by_id[1:] != by_id[:-1], np.ones(min(1, len(ids)), dtype=bool))
    return np.asarray(order[last & ~np.isin(by_id, removed)], dtype=np.int64)


def column(table: pa.Table, name: str) -> Int64[ndarray, " rows"]:
    """Return an integer column of a table."""
    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)


def write_tombstones(
    folder: Path, generation: int, ids: Int64[ndarray, " ids"]
) -> StoredFile | None:
    """Store which ids were removed; nothing if none was."""
    if not len(ids):
        return None
    ids = np.unique(ids)
    return store(
        folder,
        f"tombstones_g{generation}.npy",
        len(ids),
        lambda stream: np.save(stream, ids, allow_pickle=False),
    )


def read_tombstones(folder: Path, file: StoredFile | None) -> Int64[ndarray, " ids"]:
    """Read which ids were removed, ascending.

    Raises:
        ValueError: If the file is damaged; nobody may search then, or what was removed comes back.
    """
    if file is None:
        return np.empty(0, dtype=np.int64)
    check_hash(folder, file)
    path = folder / file.name
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path, str(error)) from error
    if ids.shape != (file.rows,) or ids.dtype != np.int64 or (np.diff(ids) <= 0).any():
        raise damaged(path, f"it holds {ids.dtype} {ids.shape}, not {file.rows} ascending ids")
    return np.asarray(ids)
