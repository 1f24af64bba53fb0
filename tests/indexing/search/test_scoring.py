"""Scores and the order among them, against Python's sort and NumPy's sums.

Vectors with coordinates of +-1/4 in 16 dimensions have inner products that are multiples of 1/8:
exact in float32 however they are summed, and full of ties.

Mutants these must catch: ties left as they come; only the first tie of a row mended; a tie at rank
k; one query ordered otherwise than many; scores that depend on how many pairs there are; ties cut
off by the candidates that FAISS proposes; ties by row where names are wanted; a block whose rows
are taken for those of the first.
"""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from vectors import stored_embeddings

from indexing.search import scoring
from indexing.search.scoring import ExactScores, best_first, pair_scores
from indexing.store.embeddings import unit_queries


@pytest.mark.parametrize("queries", [0, 1, 2, 90])
@pytest.mark.parametrize("distinct", [1, 3, 10_000])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_best_come_first_and_equal_scores_by_smaller_id(queries, distinct, k):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, distinct, (queries, 30)).astype(np.float32)
    scores[:, ::7] = -np.inf
    ids = rng.permuted(np.tile(np.arange(30), (queries, 1)), axis=1)
    found, best = best_first(ids, scores, k)
    for row in range(queries):
        ranked = sorted(zip(-scores[row], ids[row].tolist(), strict=True))[:k]
        assert list(zip(-best[row], found[row].tolist(), strict=True)) == ranked
    assert (found.shape, found.dtype, best.dtype) == ((queries, k), np.int64, np.float32)


@pytest.mark.parametrize("queries", [1, 10, 500])
def test_pairs_are_scored_alike_however_many_there_are(queries):
    rng = np.random.default_rng(1)
    table = rng.standard_normal((200, 48), dtype=np.float32)
    asked = rng.standard_normal((queries, 48), dtype=np.float32)
    rows = rng.integers(-1, 200, (queries, 20))
    threads = faiss.omp_get_max_threads()
    scores = pair_scores(asked, faiss.swig_ptr(table), rows)
    exact = np.einsum("qd,qkd->qk", asked.astype("f8"), table[rows].astype("f8"))
    missing = rows < 0
    np.testing.assert_allclose(scores[~missing], exact[~missing], atol=1e-4)  # sums of about 50
    assert (scores[missing] == -np.inf).all()
    alone = [
        pair_scores(asked[[row]], faiss.swig_ptr(table), rows[[row]])[0] for row in range(queries)
    ]
    np.testing.assert_array_equal(scores, alone)
    assert faiss.omp_get_max_threads() == threads


ROWS, DIM = 600, 16


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    few = rng.choice(np.float32([-0.25, 0.25]), (12, DIM))
    return few[rng.integers(0, len(few), ROWS)]


@pytest.mark.parametrize("k", [1, 10, 300, ROWS])
@pytest.mark.parametrize("block", [100, 1000])
def test_equal_scores_come_by_smaller_name_however_many_there_are(
    tmp_path, rows, k, block, monkeypatch
):
    monkeypatch.setattr(scoring, "_ROWS_PER_BLOCK", block)
    embeddings = stored_embeddings(tmp_path, rows)
    names = np.random.default_rng(1).permutation(ROWS) * 7
    queries = rows[[0, 5, 400]]
    found, scores = ExactScores(None, embeddings).nearest(queries, k, names)
    expected = queries.astype(np.float64) @ rows.T.astype(np.float64)
    for row in range(len(queries)):
        order = sorted(range(ROWS), key=lambda each: (-expected[row, each], names[each]))[:k]
        assert found[row].tolist() == names[order].tolist()
        np.testing.assert_array_equal(scores[row], expected[row, order])


def test_queries_are_scaled_to_length_one():
    vectors = np.array([[3.0, 4.0], [0.0, -1e-30], [1e38, 1e38]], dtype=np.float32)
    scaled = unit_queries(vectors, 2)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(scaled, [[0.6, 0.8], [0, -1], [half, half]], rtol=1e-6)
    assert scaled.dtype == np.float32


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_query_that_is_not_finite_is_refused(value):
    vectors = np.ones((3, 4), dtype=np.float32)
    vectors[1, 2] = value
    with pytest.raises(ValueError, match="query 1 is zero or not finite"):
        unit_queries(vectors, 4)


def test_zero_query_is_refused():
    with pytest.raises(ValueError, match="query 0 is zero or not finite"):
        unit_queries(np.zeros((1, 4), dtype=np.float32), 4)


@pytest.mark.parametrize("shape", [(4,), (2, 5), (2, 4, 1)])
def test_query_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"queries must have shape \(queries, 4\), got \("):
        unit_queries(np.ones(shape, dtype=np.float32), 4)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.complex64, object])
def test_query_of_another_type_is_refused(dtype):
    with pytest.raises(ValueError, match="queries must be floating point, got"):
        unit_queries(np.ones((2, 4), dtype=dtype), 4)
