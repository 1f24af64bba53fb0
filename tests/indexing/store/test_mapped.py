"""Rows of many files taken in one step: against the files themselves, read by NumPy.

Mutants these must catch: a row looked up in the neighbouring file; rows of a file that lies below
the others in memory; the last row of the highest file cut off; a file trusted because another one
was checked.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_embeddings import DIM, stored, unit_rows

from indexing.store.embeddings import MappedShards

ROWS = (0, 5, 1, 0, 700, 3, 0)


@pytest.fixture
def rows():
    return unit_rows(sum(ROWS))


@pytest.fixture
def files(tmp_path, rows):
    parts = np.split(rows, np.cumsum(ROWS)[:-1])
    return [stored(tmp_path, number, part) for number, part in enumerate(parts)]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6], [5, 4, 3, 2, 1], [2, 6, 1, 2]])
def test_every_row_of_every_file_is_found_whatever_their_order(tmp_path, files, order):
    named = [files[number] for number in order]
    table = MappedShards(tmp_path, named, DIM)
    expected = np.concatenate([np.load(tmp_path / file.name) for file in named])
    assert table.rows == len(expected)
    for chosen in (np.arange(table.rows), np.random.default_rng(0).integers(0, table.rows, 99)):
        np.testing.assert_array_equal(table[chosen], expected[chosen])
        assert table[chosen].dtype == np.float16


@pytest.mark.parametrize("count", [0, 3])
def test_table_without_rows_gives_none(tmp_path, files, count):
    table = MappedShards(tmp_path, [files[0]] * count, DIM)
    assert (table.rows, table[np.empty(0, dtype=np.int64)].shape) == (0, (0, DIM))


def test_rows_are_copies(tmp_path, files, rows):
    table = MappedShards(tmp_path, files, DIM)
    table[np.array([3])][:] = 0
    np.testing.assert_array_equal(table[np.array([3])], rows[[3]])


def test_file_that_changed_is_named_when_its_first_row_is_asked_for(tmp_path, files, rows):
    path = tmp_path / files[4].name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    table = MappedShards(tmp_path, files, DIM)
    whole, changed = np.array([0, 5, 706]), np.array([6])
    np.testing.assert_array_equal(table[whole], rows[whole])
    for _ in range(2):
        with pytest.raises(ValueError, match="img_emb_000004.npy is damaged: its content is not"):
            table[np.concatenate([whole, changed])]
    np.testing.assert_array_equal(table[whole], rows[whole])


@pytest.mark.parametrize(("row", "number"), [(0, 1), (4, 1), (5, 2), (6, 4), (705, 4), (706, 5)])
def test_file_of_a_row_is_named(tmp_path, files, row, number):
    path = MappedShards(tmp_path, files, DIM).path_of(row)
    assert path.name == f"img_emb_{number:06}.npy"
