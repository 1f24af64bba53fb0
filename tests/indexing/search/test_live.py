"""Hiding what was removed, whatever kind of searcher is underneath.

Mutants these must catch: too few fetched when all that is near was removed; a dead row among the
hits; the order of equal scores lost; an endless search of an approximate kind that gives up early.
"""

from __future__ import annotations

import numpy as np
import pytest

from indexing.search.kinds import KINDS, named_kind
from indexing.search.live import LiveSearcher
from indexing.search.making import make_searcher

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((200, 6)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
IDS = np.sort(RNG.choice(1_000, 200, replace=False)).astype(np.int64)
QUERIES = VECTORS[::20] + np.float32(0.01)


class Shortsighted:
    """Sees no more than a part of the vectors, like an approximate kind."""

    def __init__(self, reach):
        self.ids, self.reach, self.fetched = IDS, reach, []

    def search(self, queries, k):
        self.fetched.append(k)
        scores = queries @ VECTORS.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        ids, found = IDS[best], np.take_along_axis(scores, best, axis=1)
        ids[:, self.reach :], found[:, self.reach :] = -1, -np.inf
        return ids, found


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.98])
@pytest.mark.parametrize("kind", ["nearest", "random"])
def test_live_images_are_found_as_if_the_others_had_never_been_there(share, kind):
    count = int(share * len(IDS))
    near = np.argsort(-QUERIES.sum(axis=0) @ VECTORS.T)
    dead = near[:count] if kind == "nearest" else RNG.permutation(len(IDS))[:count]
    live = np.setdiff1d(np.arange(len(IDS)), dead)
    k = min(10, len(live))
    flat = named_kind("Flat", len(IDS), 6)
    searcher = make_searcher(VECTORS, IDS, flat)
    ids, scores = LiveSearcher(searcher, IDS[live]).search(QUERIES, k)
    alone = make_searcher(VECTORS[live], IDS[live], flat)
    expected_ids, expected_scores = alone.search(QUERIES, k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)


def test_nothing_more_is_fetched_when_nothing_was_removed():
    searcher = Shortsighted(reach=200)
    LiveSearcher(searcher, IDS).search(QUERIES, 5)
    assert searcher.fetched == [5]


def test_a_kind_that_sees_only_a_part_is_asked_for_all_and_then_believed():
    searcher = Shortsighted(reach=8)
    ids, scores = LiveSearcher(searcher, IDS[1:]).search(QUERIES, 10)
    assert searcher.fetched[-1] == 200
    assert ((ids[:, 8:] == -1) & (scores[:, 8:] == -np.inf)).all()
    best = np.argsort(-QUERIES @ VECTORS.T, axis=1, kind="stable")[:, :8]
    for row, seen in zip(ids, IDS[best], strict=True):
        assert [number for number in row if number >= 0] == [n for n in seen if n != IDS[0]]


@pytest.mark.parametrize("name", [name for name in KINDS if name != "IVFPQ"])  # needs 256 images
def test_what_was_removed_stays_hidden_in_every_kind(name):
    searcher = make_searcher(VECTORS, IDS, named_kind(name, len(IDS), 6))
    live = np.setdiff1d(np.arange(len(IDS)), np.argsort(-QUERIES.sum(axis=0) @ VECTORS.T)[:120])
    ids, scores = LiveSearcher(searcher, IDS[live]).search(QUERIES, 20)
    assert np.isin(ids, IDS[live]).all()
    assert all(len(set(row)) == 20 for row in ids.tolist())
    assert (np.diff(scores, axis=1) <= 0).all()
