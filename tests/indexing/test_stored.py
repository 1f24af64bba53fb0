"""Stored rows: which of them are live, and lists of removed ids that can be trusted."""

from __future__ import annotations

import numpy as np
import pytest

from indexing.storage import store
from indexing.stored import live_rows, read_tombstones, write_tombstones


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
