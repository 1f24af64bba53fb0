"""What is stored about images, as plain .npy and Parquet files, and which rows of it are live.

A build puts positions n * SHARD_SIZE up to (n + 1) * SHARD_SIZE of the corpus into shard n, so its
number depends on the list of images alone, not on what failed or on how many workers there were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int64
from msgspec.structs import replace
from numpy import ndarray

from indexing.records import RECORDS, Failure
from indexing.store.embeddings import Embeddings, are_all_in_order
from indexing.store.files import StoredFile, check_hash, damaged, is_of_machine, read_array, store
from indexing.store.manifest import MANIFEST, Manifest, Shard

SHARD_SIZE = 16_384
"""Images per shard."""

_TABLE_BYTES, _TABLE_TIMES = 1 << 26, 64
"""A table takes no more memory than this, or so many times what its file has."""

_TABLE_MOST_BYTES = 1 << 30

METADATA = pa.schema([("id", pa.int64()), *RECORDS])
"""One row per embedding; label is -1 where there is none."""

FAILURES = pa.schema(
    [
        ("path", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("position", pa.int64()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)
"""One row per image that could not be read; size and time are -1 where they are not known."""


def metadata_table(batches: Sequence[pa.RecordBatch], ids: Iterable[int]) -> pa.Table:
    """Put ids before what is known about images; one row each, in the columns of `RECORDS`."""
    records = pa.Table.from_batches(batches, RECORDS).combine_chunks()
    return pa.table([pa.array(ids, pa.int64()), *records.columns], schema=METADATA)


def write_shard(
    folder: Path,
    number: int,
    vectors: Float[ndarray, "images dim"],
    metadata: pa.Table,
    failures: Sequence[Failure] | None,
) -> Shard:
    """Store one shard; it exists once a manifest names it.

    Args:
        folder: The index.
        number: Of the shard.
        vectors: Unit vectors, one per row of `metadata`; stored as float16.
        metadata: As `metadata_table` returns it.
        failures: Images of the same run that could not be read; None if the shard keeps no list.
    """
    return Shard(
        number=number,
        embeddings=store(
            folder,
            f"img_emb/img_emb_{number:06d}.npy",
            len(vectors),
            lambda stream: np.save(stream, vectors.astype(np.float16), allow_pickle=False),
        ),
        metadata=_store_table(folder, f"metadata/metadata_{number:06d}.parquet", metadata),
        failures=None if failures is None else write_failures(folder, number, failures),
    )


def write_failures(folder: Path, number: int, failures: Sequence[Failure]) -> StoredFile:
    """Store a list of images that could not be read."""
    table = pa.Table.from_pylist([asdict(failure) for failure in failures], FAILURES)
    return _store_table(folder, f"failures/failures_{number:06d}.parquet", table)


def relist(
    path: Path, shards: Sequence[Shard], next_shard: int, failures: Sequence[Failure]
) -> dict[str, Any]:
    """Store one list of the images that could not be read, instead of those of the shards.

    Returns:
        What to replace in the manifest.
    """
    return {
        "shards": tuple(replace(shard, failures=None) for shard in shards),
        "failures": write_failures(path, next_shard, failures) if failures else None,
        "next_shard": next_shard + 1 if failures else next_shard,
    }


def read_failures(folder: Path, files: Sequence[StoredFile]) -> list[Failure]:
    """Read lists of images that could not be read, as one.

    Raises:
        ValueError: If a file is damaged or has other columns or rows than it should.
    """
    tables = [_read_table(folder, file, FAILURES) for file in files]
    return [Failure(**row) for table in tables for row in table.to_pylist()]


def read_tables(folder: Path, files: Sequence[StoredFile], schema: pa.Schema) -> pa.Table:
    """Read the tables of all shards as one.

    Raises:
        ValueError: If a file is damaged or has other columns or rows than it should.
    """
    tables = [_read_table(folder, file, schema) for file in files]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _store_table(folder: Path, name: str, table: pa.Table) -> StoredFile:
    return store(folder, name, table.num_rows, lambda stream: pq.write_table(table, stream))


def _read_table(folder: Path, file: StoredFile, schema: pa.Schema) -> pa.Table:
    path = folder / file.name
    if file.bytes > _TABLE_MOST_BYTES:
        raise damaged(path, f"it has {file.bytes:,} bytes, more than any table of ours")
    check_hash(folder, file)  # the file is read whole anyway
    texts = [field.name for field in schema if field.type == pa.string()]
    try:
        with pq.ParquetFile(path) as parquet:
            stored = parquet.metadata
            if not parquet.schema_arrow.equals(schema):
                raise damaged(path, f"its columns are {parquet.schema_arrow.names}")
            if stored.num_rows != file.rows:
                raise damaged(path, f"it has {stored.num_rows} rows, not {file.rows}")
            _check_room(path, _size_coded(stored, schema), file)
        # A text that comes a million times stays one until it is certain that all have room.
        with pq.ParquetFile(path, metadata=stored, read_dictionary=texts) as parquet:
            table = parquet.read()
        _check_room(path, sum(map(_size_of_texts, map(table.column, texts))), file)
        table = table.cast(schema)
    except (pa.ArrowException, OSError) as error:
        if is_of_machine(error):
            raise
        raise damaged(path, str(error)) from error
    if any(column.null_count for column in table.columns):
        raise damaged(path, "values are missing in it")
    return table


def _size_coded(stored: pq.FileMetaData, schema: pa.Schema) -> int:
    """Bytes that a table takes while each text is there once."""
    row_bytes = sum(4 if f.type == pa.string() else int(f.type.bit_width) // 8 for f in schema)
    groups = map(stored.row_group, range(stored.num_row_groups))
    return row_bytes * int(stored.num_rows) + sum(int(g.total_byte_size) for g in groups)


def _size_of_texts(column: pa.ChunkedArray) -> int:
    lengths = (pc.binary_length(part.dictionary).take(part.indices) for part in column.chunks)
    return sum(int(pc.sum(length.cast(pa.int64())).as_py() or 0) for length in lengths)


def _check_room(path: Path, size: int, file: StoredFile) -> None:
    """Refuse a table that takes much more memory than its file is large."""
    if size > max(_TABLE_BYTES, _TABLE_TIMES * file.bytes):
        raise damaged(path, f"its {file.bytes:,} bytes would become {size:,}")


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

    def live_metadata(self) -> pa.Table:
        """The rows of `metadata` that are live, by ascending id."""
        everything = are_all_in_order(self.live, len(self.ids))
        return self.metadata if everything else self.metadata.take(pa.array(self.live))

    def live_embeddings(self) -> Embeddings:
        """The rows of `embeddings` that are live, by ascending id."""
        return self.embeddings.take(self.live)

    def searchable(self) -> tuple[Embeddings, Int64[ndarray, " rows"]]:
        """Last row of each id, of those removed too, by ascending id: whatever is searched.

        Returns:
            Embeddings and ids.
        """
        if not len(self.removed):
            return self.live_embeddings(), self.ids[self.live]
        rows = live_rows(self.ids, np.empty(0, dtype=np.int64))
        return self.embeddings.take(rows), self.ids[rows]

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
    """Return an integer column of a table.

    Not by Arrow's own way to NumPy, which imports pandas where it is installed.
    """
    chunks = [np.from_dlpack(chunk) for chunk in table.column(name).chunks]
    return np.concatenate([np.empty(0, dtype=np.int64), *chunks], dtype=np.int64)


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
    ids = np.asarray(read_array(folder, file, (file.rows,), np.int64), dtype=np.int64)
    check_hash(folder, file)
    if (np.diff(ids) <= 0).any():
        raise damaged(folder / file.name, "it holds ids that do not ascend")
    return ids
