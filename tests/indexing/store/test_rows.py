"""Shards: plain files that other tools read, row for row what was given; which rows are live."""

from __future__ import annotations

import hashlib
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexing.records import RECORDS as COLUMNS
from indexing.records import Failure, ImageRecord
from indexing.store.files import store
from indexing.store.rows import (
    METADATA,
    live_rows,
    metadata_table,
    read_failures,
    read_tables,
    read_tombstones,
    write_shard,
    write_tombstones,
)


def record(position):
    digest = hashlib.sha256(bytes([position])).hexdigest()
    return ImageRecord(position, f"a/{position}.png", 10 + position, 99, digest, 24, 20, 1)


RECORDS = [record(position) for position in (0, 1, 3)]
FAILED = [Failure("a/2.png", "OSError", "cut off", 2, 12, 99)]
VECTORS = np.eye(3, 8, dtype=np.float32)


def table(records, first_id):
    columns = pa.RecordBatch.from_pylist([asdict(record) for record in records], COLUMNS)
    return metadata_table([columns], range(first_id, first_id + len(records)))


def test_shard_is_three_plain_files_with_the_names_others_read(tmp_path):
    write_shard(tmp_path, 17, VECTORS, table(RECORDS, 40), FAILED)
    vectors = np.load(tmp_path / "img_emb/img_emb_000017.npy")
    metadata = pq.read_table(tmp_path / "metadata/metadata_000017.parquet").to_pylist()
    failures = pq.read_table(tmp_path / "failures/failures_000017.parquet").to_pylist()
    np.testing.assert_array_equal(vectors, VECTORS.astype(np.float16))
    assert vectors.dtype == np.float16
    assert [(row["id"], row["path"]) for row in metadata] == [
        (40, "a/0.png"),
        (41, "a/1.png"),
        (42, "a/3.png"),
    ]
    assert metadata[2] == {"id": 42, **asdict(RECORDS[2])}
    expected = {"path": "a/2.png", "error": "OSError", "message": "cut off", "position": 2}
    assert failures == [{**expected, "bytes": 12, "mtime_ns": 99}]


def test_shard_describes_its_files(tmp_path):
    shard = write_shard(tmp_path, 2, VECTORS, table(RECORDS, 0), FAILED)
    assert shard.number == 2
    for file, rows in ((shard.embeddings, 3), (shard.metadata, 3), (shard.failures, 1)):
        content = (tmp_path / file.name).read_bytes()
        assert (file.rows, file.bytes) == (rows, len(content))
        assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert {path.name for path in tmp_path.iterdir()} == {"failures", "img_emb", "metadata"}


def test_tables_of_all_shards_read_as_one(tmp_path):
    shards = [
        write_shard(tmp_path, 0, VECTORS, table(RECORDS, 0), []),
        write_shard(tmp_path, 1, VECTORS[:0], table([], 3), FAILED),
        write_shard(tmp_path, 2, VECTORS[:1], table([record(9)], 3), []),
    ]
    metadata = read_tables(tmp_path, [shard.metadata for shard in shards], METADATA)
    failures = read_failures(tmp_path, [shard.failures for shard in shards])
    assert metadata.schema.equals(METADATA)
    assert metadata.column("id").to_pylist() == [0, 1, 2, 3]
    assert metadata.column("position").to_pylist() == [0, 1, 3, 9]
    assert failures == FAILED


def stored_table(folder, table, rows):
    name = "metadata/metadata_000000.parquet"
    return store(folder, name, rows, lambda stream: pq.write_table(table, stream))


def test_table_with_other_columns_is_refused(tmp_path):
    file = stored_table(tmp_path, pa.table({"id": [1], "password": ["x"]}), rows=1)
    with pytest.raises(ValueError, match=r"damaged: its columns are \['id', 'password'\]"):
        read_tables(tmp_path, [file], METADATA)


def test_table_with_other_rows_is_refused(tmp_path):
    table = pa.Table.from_pylist([{"id": 0}, {"id": 1}], METADATA)
    with pytest.raises(ValueError, match="damaged: it has 2 rows, not 3"):
        read_tables(tmp_path, [stored_table(tmp_path, table, rows=3)], METADATA)


def test_table_with_missing_values_is_refused(tmp_path):
    table = pa.Table.from_pylist([{"id": 0}], METADATA)
    with pytest.raises(ValueError, match="damaged: values are missing in it"):
        read_tables(tmp_path, [stored_table(tmp_path, table, rows=1)], METADATA)


def test_file_that_is_no_table_is_refused(tmp_path):
    name = "metadata/metadata_000000.parquet"
    file = store(tmp_path, name, 1, lambda stream: stream.write(b"no parquet at all"))
    with pytest.raises(ValueError, match=r"metadata_000000.parquet is damaged"):
        read_tables(tmp_path, [file], METADATA)


def test_changed_table_is_refused(tmp_path):
    shard = write_shard(tmp_path, 0, VECTORS, table(RECORDS, 0), [])
    path = tmp_path / shard.metadata.name
    path.write_bytes(path.read_bytes().replace(b"a/3.png", b"b/3.png"))
    with pytest.raises(ValueError, match="its content is not what was written"):
        read_tables(tmp_path, [shard.metadata], METADATA)


def ids(*numbers):
    return np.array(numbers, dtype=np.int64)


@pytest.mark.parametrize(
    ("stored", "removed", "live"),
    [
        ([], [], []),
        ([0, 1, 2], [], [0, 1, 2]),
        ([0, 1, 2], [1], [0, 2]),
        ([5, 3, 4], [], [1, 2, 0]),  # by ascending id
        ([0, 1, 2, 1], [], [0, 3, 2]),  # renamed: the later row counts
        ([0, 1, 2, 1], [1], [0, 2]),
        ([0, 1], [0, 1], []),
    ],
)
def test_last_row_of_each_id_that_was_not_removed_is_live(stored, removed, live):
    assert live_rows(ids(*stored), ids(*removed)).tolist() == live


def test_tombstones_are_read_as_they_were_written(tmp_path):
    file = write_tombstones(tmp_path, 3, ids(9, 2, 9, 40))
    assert file.name == "tombstones_g3.npy"
    assert read_tombstones(tmp_path, file).tolist() == [2, 9, 40]


def test_without_tombstones_nothing_is_written_and_nothing_removed(tmp_path):
    assert write_tombstones(tmp_path, 3, ids()) is None
    assert not list(tmp_path.iterdir())
    assert read_tombstones(tmp_path, None).tolist() == []


@pytest.mark.parametrize(
    "content", [ids(2, 1), ids(1, 1), ids(1, 2, 3), np.array([1.0, 2.0]), np.array([[1, 2]])]
)
def test_other_content_is_refused(tmp_path, content):
    name = "tombstones_g3.npy"
    file = store(tmp_path, name, 2, lambda stream: np.save(stream, content))
    with pytest.raises(ValueError, match="tombstones_g3.npy is damaged: it holds"):
        read_tombstones(tmp_path, file)
