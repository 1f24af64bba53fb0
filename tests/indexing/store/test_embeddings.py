"""Stored embeddings: any rows of any shard, as unit vectors, and damage named.

Mutants these must catch: rows looked up in the neighbouring shard; float16 rounding left in the
length; NaN passing a comparison.
"""

from __future__ import annotations

import numpy as np
import pytest

from indexing.store.embeddings import Embeddings
from indexing.store.files import store

DIM = 24
ROWS = (5, 0, 1, 7)


def unit_rows(count, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def stored(folder, number, rows):
    name = f"img_emb/img_emb_{number:06d}.npy"
    return store(folder, name, len(rows), lambda stream: np.save(stream, rows))


@pytest.fixture
def rows():
    return unit_rows(sum(ROWS))


@pytest.fixture
def embeddings(tmp_path, rows):
    parts = np.split(rows, np.cumsum(ROWS)[:-1])
    files = [stored(tmp_path, number, part) for number, part in enumerate(parts)]
    return Embeddings(tmp_path, files, DIM)


@pytest.fixture
def expected(rows):
    exact = rows.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def test_all_rows_are_those_of_all_shards_in_order(embeddings, expected):
    assert (len(embeddings), embeddings.shape) == (13, (13, DIM))
    np.testing.assert_allclose(embeddings[:], expected, atol=1e-7)  # one float32 rounding


@pytest.mark.parametrize("chosen", [slice(3, 11, 2), slice(5, 5), np.array([12, 0, 5, 5, 4])])
def test_chosen_rows_come_in_the_order_asked_for(embeddings, expected, chosen):
    assert embeddings[chosen].dtype == np.float32
    np.testing.assert_allclose(embeddings[chosen], expected[chosen], atol=1e-7)


def test_one_row_is_a_vector(embeddings, expected):
    assert embeddings[6].shape == (DIM,)
    np.testing.assert_allclose(embeddings[6], expected[6], atol=1e-7)


def test_rows_have_length_one_though_float16_has_not(embeddings, rows):
    stored_norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    assert np.abs(stored_norms - 1).max() > 1e-5
    np.testing.assert_allclose(np.linalg.norm(embeddings[:], axis=1), 1, atol=1e-6)


def test_float16_is_widened_without_rounding(tmp_path):
    half = np.arange(1 << 15, dtype=np.uint16).view(np.float16)  # all that are not negative
    small = half[half <= 1]
    rows = np.zeros((len(small), DIM), dtype=np.float16)
    rows[:, 0] = np.sqrt(1 - small.astype(np.float64) ** 2)
    rows[:, 1] = -small
    exact = rows.astype(np.float64)
    found = Embeddings(tmp_path, [stored(tmp_path, 0, rows)], DIM)[:]
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(found, exact, rtol=3e-7)  # two float32 roundings


@pytest.mark.parametrize("outside", [13, -1, np.array([0, 99])])
def test_row_outside_the_table_is_an_error(embeddings, outside):
    with pytest.raises(IndexError, match=r"row numbers must be within 0\.\.12, got"):
        embeddings[outside]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 2.0])
def test_row_that_is_no_unit_vector_is_never_served(tmp_path, value):
    rows = unit_rows(4)
    rows[2] = value
    embeddings = Embeddings(tmp_path, [stored(tmp_path, 0, rows)], DIM)
    embeddings[:2]
    with pytest.raises(ValueError, match=r"img_emb_000000.npy is damaged: row 2 is not a unit"):
        embeddings[:]


@pytest.mark.parametrize(
    "rows", [unit_rows(4).astype(np.float32), unit_rows(4)[:, :-1], unit_rows(5), unit_rows(4)[0]]
)
def test_file_of_another_shape_or_type_is_refused(tmp_path, rows):
    file = store(tmp_path, "img_emb/img_emb_000000.npy", 4, lambda stream: np.save(stream, rows))
    with pytest.raises(ValueError, match=r"img_emb_000000.npy is damaged: it holds .*float16 \(4,"):
        Embeddings(tmp_path, [file], DIM)


def test_pickle_is_refused(tmp_path):
    rows = np.array([{"code": "would run"}] * 4, dtype=object)
    with pytest.raises(ValueError, match=r"img_emb_000000.npy is damaged: .*object"):
        Embeddings(tmp_path, [stored(tmp_path, 0, rows)], DIM)


def test_file_cut_inside_its_rows_is_refused(tmp_path):
    file = stored(tmp_path, 0, unit_rows(4))
    path = tmp_path / file.name
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"img_emb_000000.npy is damaged"):
        Embeddings(tmp_path, [file], DIM)
