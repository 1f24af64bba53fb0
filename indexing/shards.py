"""Shards: what is stored about a run of the corpus list, as plain .npy and Parquet files.

Shard n covers positions n * SHARD_SIZE up to (n + 1) * SHARD_SIZE of the corpus, so its number
depends on the list of images alone, not on what failed or on how many workers there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from numpy import ndarray

from indexing.corpus import RECORDS, Failure
from indexing.manifest import Shard, StoredFile
from indexing.storage import check_hash, damaged, store

SHARD_SIZE = 16_384
"""Positions of the corpus list per shard."""

METADATA = pa.schema([("id", pa.int64()), *RECORDS])
"""One row per embedding; label is -1 where there is none."""

FAILURES = pa.schema(
    [
        ("path", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("position", pa.int64()),
    ]
)
"""One row per image that could not be read."""


def write_shard(
    folder: Path,
    number: int,
    vectors: Float32[ndarray, "images dim"],
    records: pa.Table,
    failures: Sequence[Failure],
    first_id: int,
) -> Shard:
    """Store one shard; it exists once a manifest names it.

    Args:
        folder: The index.
        number: Of the shard, from 0.
        vectors: Unit vectors, one per record; stored as float16.
        records: What is known about each image, as `RECORDS` says.
        failures: Images of the same run that could not be read.
        first_id: Id of the first record; the others follow.
    """
    ids = pa.array(np.arange(first_id, first_id + records.num_rows))
    failed = [asdict(failure) for failure in failures]
    return Shard(
        number=number,
        embeddings=store(
            folder,
            f"img_emb/img_emb_{number:06d}.npy",
            len(vectors),
            lambda stream: np.save(stream, vectors.astype(np.float16), allow_pickle=False),
        ),
        metadata=_store_table(
            folder,
            f"metadata/metadata_{number:06d}.parquet",
            pa.table([ids, *records.columns], schema=METADATA),
        ),
        failures=_store_table(
            folder,
            f"failures/failures_{number:06d}.parquet",
            pa.Table.from_pylist(failed, FAILURES),
        ),
    )


def read_tables(folder: Path, files: Sequence[StoredFile], schema: pa.Schema) -> pa.Table:
    """Read the tables of all shards as one.

    Raises:
        ValueError: If a file is damaged or has other columns or rows than it should.
    """
    return pa.concat_tables([_read_table(folder, file, schema) for file in files])


def _store_table(folder: Path, name: str, table: pa.Table) -> StoredFile:
    return store(folder, name, table.num_rows, lambda stream: pq.write_table(table, stream))


def _read_table(folder: Path, file: StoredFile, schema: pa.Schema) -> pa.Table:
    check_hash(folder, file)  # the file is read whole anyway
    path = folder / file.name
    try:
        with pq.ParquetFile(path) as parquet:
            if not parquet.schema_arrow.equals(schema):
                raise damaged(path, f"its columns are {parquet.schema_arrow.names}")
            if parquet.metadata.num_rows != file.rows:
                raise damaged(path, f"it has {parquet.metadata.num_rows} rows, not {file.rows}")
            table = parquet.read()
    except pa.ArrowException as error:
        raise damaged(path, str(error)) from error
    if any(column.null_count for column in table.columns):
        raise damaged(path, "values are missing in it")
    return table
