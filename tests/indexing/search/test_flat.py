"""Exact search against NumPy: every score, every tie.

Vectors with coordinates of +-1/4 in 16 dimensions have length one, and their inner products are
multiples of 1/8: exact in float32 however they are summed, and full of ties.

Mutants these must catch: ties left as FAISS returns them; a tie at rank k cut by the candidates;
scores that depend on the batch; row numbers returned for ids; a smaller id losing to an earlier
row.
"""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
from msgspec.structs import replace
from vectors import described, flat_searcher, stored_embeddings

from indexing.search.kinds import named_kind
from indexing.search.making import read_searcher, reserve
from indexing.store.files import store

NAME = "index/knn_g1.faiss"
FULL = Path("/dev/full")


def grid(count, seed, distinct=None):
    rng = np.random.default_rng(seed)
    rows = rng.choice(np.float32([-0.25, 0.25]), (distinct or count, 16))
    return rows if distinct is None else rows[rng.integers(0, distinct, count)]


def gaussian(count, dim, seed):
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def brute_force(rows, ids, queries, k):
    """Sort all images by (-score, id) with Python's own sort."""
    found = []
    for query in queries.astype(np.float64):
        scores = rows.astype(np.float64) @ query
        ranked = sorted(zip(-scores, ids.tolist(), strict=True))[:k]
        found.append([image for _, image in ranked])
    return np.array(found)


@pytest.mark.parametrize("queries", [1, 70])
@pytest.mark.parametrize("k", [1, 10, 200, 400])
def test_search_equals_sorting_all_scores_by_score_then_id(queries, k):
    rows, asked = grid(400, seed=1), grid(queries, seed=2)
    ids = np.random.default_rng(3).permutation(10_000)[:400]
    found, scores = flat_searcher(rows, ids).search(asked, k)
    np.testing.assert_array_equal(found, brute_force(rows, ids, asked, k))
    expected = np.sort(asked @ rows.T, axis=1)[:, ::-1][:, :k]
    np.testing.assert_array_equal(scores, expected)
    assert (found.dtype, scores.dtype) == (np.int64, np.float32)


def test_memory_taken_at_once_is_not_taken_again():
    rows, index = gaussian(3_000, 16, seed=1), faiss.IndexFlatIP(16)
    reserve(index, len(rows))
    assert index.ntotal == 0
    places = set()
    for start in range(0, len(rows), 100):
        index.add(rows[start : start + 100])
        places.add(int(index.get_xb()))
    assert len(places) == 1  # never moved
    np.testing.assert_array_equal(index.reconstruct_n(0, len(rows)), rows)


@pytest.mark.parametrize("k", [1, 5, 60])
def test_tie_of_hundreds_of_images_is_cut_at_the_smallest_ids(k):
    rows = grid(600, seed=4, distinct=2)
    ids = np.arange(600)[::-1].copy()
    found, _ = flat_searcher(rows, ids).search(rows[:25], k)
    np.testing.assert_array_equal(found, brute_force(rows, ids, rows[:25], k))


def test_search_equals_sorting_all_scores_of_ordinary_vectors():
    rows, asked = gaussian(3_000, 48, seed=5), gaussian(40, 48, seed=6)
    ids = np.arange(3_000)
    found, scores = flat_searcher(rows, ids).search(asked, 25)
    np.testing.assert_array_equal(found, brute_force(rows, ids, asked, 25))
    exact = np.take_along_axis(asked.astype(np.float64) @ rows.T.astype(np.float64), found, 1)
    np.testing.assert_allclose(scores, exact, atol=48 * 2.0**-24)  # worst rounding of a sum of 48


def test_result_does_not_depend_on_the_rest_of_the_batch():
    rows = gaussian(2_000, 192, seed=7)
    rows[1_000:] = rows[:1_000]  # every image twice, so a different last bit would swap the two
    index = flat_searcher(rows, np.arange(2_000))
    asked = gaussian(1_000, 192, seed=8)  # enough numbers for FAISS to hand them to BLAS
    together = index.search(asked, 10)
    for row, query in enumerate(asked[:100]):
        alone = index.search(query[np.newaxis], 10)
        np.testing.assert_array_equal(alone[0][0], together[0][row])
        np.testing.assert_array_equal(alone[1][0], together[1][row])
    np.testing.assert_array_equal(together[0][:, 1::2], together[0][:, ::2] + 1_000)


def test_no_query_finds_nothing():
    ids, scores = flat_searcher(grid(9, seed=9), np.arange(9)).search(np.empty((0, 16), "f4"), 4)
    assert (ids.shape, scores.shape) == ((0, 4), (0, 4))


@pytest.fixture
def stored(tmp_path):
    index = flat_searcher(grid(50, seed=10), np.arange(100, 150))
    return store(tmp_path, NAME, 50, index.engine.write)


def read(folder, file, dim=16):
    embeddings = stored_embeddings(folder, grid(50, seed=10)[:, :dim])
    record = described(named_kind("Flat", 50, 16), file)
    return read_searcher(folder, record, embeddings, np.arange(100, 150))


def test_index_is_read_as_it_was_written(tmp_path, stored):
    index = read(tmp_path, stored)
    assert index.ids.tolist() == list(range(100, 150))
    asked = grid(5, seed=11)
    expected = brute_force(grid(50, seed=10), index.ids, asked, 7)
    np.testing.assert_array_equal(index.search(asked, 7)[0], expected)


def test_flipped_bit_that_faiss_would_load_is_found(tmp_path, stored):
    path = tmp_path / NAME
    content = bytearray(path.read_bytes())
    content[500] ^= 0x40
    path.write_bytes(content)
    assert faiss.read_index(str(path)).ntotal == 50
    with pytest.raises(ValueError, match=r"knn_g1.faiss is damaged: its content is not what was"):
        read(tmp_path, stored)


def store_faiss(folder, faiss_index):
    content = faiss.serialize_index(faiss_index).tobytes()
    return store(folder, NAME, 50, lambda stream: stream.write(content))


@pytest.mark.parametrize("factory", ["Flat", "IDMap,HNSW8", "IDMap2,Flat", "IDMap,SQ8"])
def test_other_kind_of_faiss_index_is_not_even_opened(tmp_path, monkeypatch, factory):
    other = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
    file = store_faiss(tmp_path, other)
    monkeypatch.delattr(faiss, "read_index")
    with pytest.raises(ValueError, match="knn_g1.faiss is damaged: it holds a structure"):
        read(tmp_path, file)


@pytest.mark.parametrize(
    ("rows", "dim", "message"),
    [(51, 16, "it holds 50 vectors, not 51"), (50, 8, "its vectors have dimension 16, not 8")],
)
def test_sizes_that_the_manifest_does_not_know_are_refused(tmp_path, stored, rows, dim, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, replace(stored, rows=rows), dim)


def test_file_cut_off_before_it_was_hashed_is_refused(tmp_path, stored):
    content = (tmp_path / NAME).read_bytes()[:-100]
    (tmp_path / NAME).unlink()
    file = store(tmp_path, NAME, 50, lambda stream: stream.write(content))
    with pytest.raises(ValueError, match="damaged: it is cut off, or names a size larger"):
        read(tmp_path, file)


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_full_disk_is_noticed():
    index = flat_searcher(grid(50, seed=10), np.arange(50))
    with FULL.open("wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        index.engine.write(full)
