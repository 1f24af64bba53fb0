"""Searching for some of the images: all kinds alike, exact where it is promised.

Mutants these must catch: an image found that may not be; too few found where those that may are
far from the query; a filter that counts rows where ids are meant; hits in another order.
"""

from __future__ import annotations

import numpy as np
import pytest
from vectors import clustered, sized, stored_embeddings

from indexing.search import live
from indexing.search.live import LiveSearcher
from indexing.search.making import make_searcher

ROWS = clustered(2_000, 1).astype(np.float16).astype(np.float64)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)  # as they are when they are read
IDS = np.sort(np.random.default_rng(2).choice(9_000, len(ROWS), replace=False)).astype(np.int64)
QUERIES = clustered(50, 3)
SHARES = [0.001, 0.01, 0.2, 0.9]
K = 10


def chosen(share: float, near: bool) -> np.ndarray:
    """Some rows: at random, or those that are farthest from the first query."""
    count = max(1, int(share * len(ROWS)))
    order = np.argsort(QUERIES[0] @ ROWS.T) if near else np.random.default_rng(4).permutation(2_000)
    return np.sort(order[:count])


def cosines_of(rows: np.ndarray) -> np.ndarray:
    return QUERIES.astype(np.float64) @ ROWS[rows].T


def expected(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = cosines_of(rows)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return IDS[rows][best], np.take_along_axis(scores, best, axis=1)


def assert_exact(ids: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
    """The nearest of some rows, but for the order of two whose cosines differ by rounding only."""
    wanted, cosines = expected(rows, K)
    assert ids.shape == wanted.shape
    places = np.searchsorted(IDS[rows], ids)
    np.testing.assert_array_equal(IDS[rows][places], ids)
    found = np.take_along_axis(cosines_of(rows), places, axis=1)
    np.testing.assert_allclose(found, cosines, atol=1e-6, rtol=0)
    np.testing.assert_allclose(scores, found, atol=1e-6, rtol=0)
    assert all(len(set(each)) == len(each) for each in ids.tolist())


@pytest.fixture(scope="module")
def searchers(tmp_path_factory):
    made = {}

    def get(name: str) -> LiveSearcher:
        if name not in made:
            embeddings = stored_embeddings(tmp_path_factory.mktemp("rows"), ROWS)
            made[name] = LiveSearcher(make_searcher(embeddings, IDS, sized(name)), IDS)
        return made[name]

    return get


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("few", [0, 10_000], ids=["overfetched", "compared"])
def test_flat_finds_exactly_the_nearest_that_may_be_found(searchers, monkeypatch, share, few, far):
    monkeypatch.setattr(live, "_FEW", few)
    monkeypatch.setattr(live, "_FARTHEST", 256)  # so that some are compared in the end
    rows = chosen(share, far)
    ids, scores = searchers("Flat").search(QUERIES, K, IDS[rows])
    assert_exact(ids, scores, rows)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["HNSW", "IVFFlat", "IVFSQ8", "IVFRaBitQ", "Flat16"])
def test_other_kinds_find_nearly_all_that_may_be_found(searchers, monkeypatch, name, share):
    monkeypatch.setattr(live, "_FEW", 100)
    rows = chosen(share, near=False)
    ids, scores = searchers(name).search(QUERIES, K, IDS[rows])
    wanted, _ = expected(rows, K)
    assert ids.shape == wanted.shape
    assert np.isin(ids, IDS[rows]).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    recall = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(ids, wanted, strict=True)])
    assert recall >= (0.9 if len(rows) > 100 else 1.0)


def test_nothing_may_be_found(searchers):
    ids, scores = searchers("Flat").search(QUERIES, K, IDS[:0])
    assert ids.shape == scores.shape == (len(QUERIES), 0)


def test_what_was_removed_is_not_found_among_the_others(tmp_path):
    embeddings = stored_embeddings(tmp_path, ROWS)
    live_rows, among = np.arange(0, 2_000, 2), np.arange(0, 2_000, 4)
    searcher = LiveSearcher(make_searcher(embeddings, IDS, sized("Flat")), IDS[live_rows])
    assert_exact(*searcher.search(QUERIES, K, IDS[among]), among)
