"""Shards: what is stored about a run of images, as plain .npy and Parquet files.

A build puts positions n * SHARD_SIZE up to (n + 1) * SHARD_SIZE of the corpus into shard n, so its
number depends on the list of images alone, not on what failed or on how many workers there were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from numpy import ndarray

from indexing.manifest import Shard, StoredFile
from indexing.records import RECORDS, Failure
from indexing.storage import check_hash, damaged, store

SHARD_SIZE = 16_384
"""Images per shard."""

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

_FAILURES_OF_VERSION_1 = pa.schema(list(FAILURES)[:4])


def metadata_table(batches: Sequence[pa.RecordBatch], ids: Iterable[int]) -> pa.Table:
    """Put ids before what is known about images; one row each, in the columns of `RECORDS`."""
    records = pa.Table.from_batches(batches, RECORDS)
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


def read_failures(folder: Path, files: Sequence[StoredFile]) -> list[Failure]:
    """Read lists of images that could not be read, as one.

    Raises:
        ValueError: If a file is damaged or has other columns or rows than it should.
    """
    tables = [_read_table(folder, file, FAILURES, _FAILURES_OF_VERSION_1) for file in files]
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


def _read_table(folder: Path, file: StoredFile, *schemas: pa.Schema) -> pa.Table:
    """Read one table, which must have the columns of one of the schemas."""
    check_hash(folder, file)  # the file is read whole anyway
    path = folder / file.name
    try:
        with pq.ParquetFile(path) as parquet:
            if not any(parquet.schema_arrow.equals(schema) for schema in schemas):
                raise damaged(path, f"its columns are {parquet.schema_arrow.names}")
            if parquet.metadata.num_rows != file.rows:
                raise damaged(path, f"it has {parquet.metadata.num_rows} rows, not {file.rows}")
            table = parquet.read()
    except pa.ArrowException as error:
        raise damaged(path, str(error)) from error
    if any(column.null_count for column in table.columns):
        raise damaged(path, "values are missing in it")
    return table
