"""Sizes that are forged: small files that would fill the memory are refused before they do.

The hashes are right, as those of a forged index are.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from indexing.store.files import StoredFile, store
from indexing.store.folder import read_manifest
from indexing.store.manifest import MAX_BYTES, Manifest
from indexing.store.rows import FAILURES, METADATA, read_tables, read_tombstones
from matvit import parse_json
from matvit.files import MAX_JSON_VALUES

ROWS = 16_384
ROOM = 1 << 28


def forged_table(folder: Path, schema: pa.Schema, rows: int, text: str) -> StoredFile:
    """A table whose texts are one text each, written once."""
    same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))
    columns = [
        same if field.type == pa.string() else pa.array(np.zeros(rows)).cast(field.type)
        for field in schema
    ]
    table = pa.table(dict(zip(schema.names, columns, strict=True)))
    name = f"{'failures/failures' if schema is FAILURES else 'metadata/metadata'}_000000.parquet"
    return store(
        folder, name, rows, lambda stream: pq.write_table(table, stream, store_schema=False)
    )


@pytest.mark.parametrize("schema", [METADATA, FAILURES])
@pytest.mark.parametrize("compression", [None, "longer than its file"])
def test_table_that_would_become_gigabytes_is_refused(tmp_path, schema, compression):
    text = "x" * (500_000 if compression is None else 5_000_000)
    file = forged_table(tmp_path, schema, ROWS, text)
    assert file.bytes < 2_000_000
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match=r"is damaged: its [\d,]+ bytes would become [\d,]{13,}"):
        read_tables(tmp_path, [file], schema)
    assert pa.total_allocated_bytes() - before < ROOM


def test_table_of_very_many_equal_rows_is_refused(tmp_path):
    file = forged_table(tmp_path, METADATA, 1_500_000, "x")
    assert file.bytes < 2_000_000
    with pytest.raises(ValueError, match=r"is damaged: its [\d,]+ bytes would become"):
        read_tables(tmp_path, [file], METADATA)


def test_table_that_says_to_be_huge_is_not_even_hashed(tmp_path, monkeypatch):
    name = "metadata/metadata_000000.parquet"
    file = store(tmp_path, name, 1, lambda stream: stream.write(b"x"))
    with (tmp_path / name).open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse: it takes no room, but an hour to read
    monkeypatch.setattr("indexing.store.rows.check_hash", None)
    with pytest.raises(ValueError, match="it has 1,099,511,627,776 bytes, more than any table"):
        read_tables(tmp_path, [replace(file, bytes=1 << 40)], METADATA)


def test_table_of_long_names_is_none(tmp_path):
    file = forged_table(tmp_path, METADATA, 1_000, "x" * 4_000)
    assert read_tables(tmp_path, [file], METADATA).column("path")[999].as_py() == "x" * 4_000


@pytest.mark.parametrize("shape", [f"({1 << 40},)", "(" + "9" * 19 + ",)", "(" + "1," * 900 + ")"])
def test_array_that_says_to_be_larger_than_its_file_is_refused(tmp_path, shape):
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(16)
    rows = 1 << 40
    file = store(tmp_path, "tombstones_g3.npy", rows, lambda stream: stream.write(content))
    with pytest.raises(ValueError, match=r"tombstones_g3.npy is damaged: (it h|its header)"):
        read_tombstones(tmp_path, file)


@pytest.mark.parametrize("kind", [",f2", "<f2,", "<f9", "(2,)f2", "<i99999999", "", "V9999999"])
def test_array_of_a_type_that_is_none_is_refused(tmp_path, kind):
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (2,), }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(16)
    file = store(tmp_path, "tombstones_g3.npy", 2, lambda stream: stream.write(content))
    with pytest.raises(ValueError, match=r"tombstones_g3.npy is damaged: (it holds|its header)"):
        read_tombstones(tmp_path, file)


def test_manifest_that_is_too_large_is_refused_unread(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as stream:
        stream.truncate(240 << 20)
    with pytest.raises(ValueError, match=r"manifest.json: it has 251,658,240 bytes, more than"):
        read_manifest(tmp_path)


def test_small_json_of_very_many_values_is_refused_unread():
    text = b"[" + b"[]," * (MAX_JSON_VALUES // 2) + b"[]]"
    assert len(text) < MAX_BYTES
    with pytest.raises(ValueError, match=r"it has [\d,]+ values, more than the limit of"):
        parse_json(text, list[object], "anything")
    with pytest.raises(ValueError, match=r"it has [\d,]+ values, more than the limit of"):
        Manifest.from_json(text)
