"""Hiding what was removed, or is not asked for, from whatever searches, all kinds alike."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from indexing.search.engine import Engine
from indexing.search.scoring import Found
from indexing.search.searcher import RescoringSearcher

_NONE = -1
_SPARE = 16
_GROWTH = 4
_FEW = 10_000  # images that are compared one by one in about the time of a search
_FARTHEST = 2_048  # candidates that a search goes through for some images; what a GPU can fetch


class LiveSearcher:
    """Searches for what was not removed, or for some of it.

    FAISS's own selectors are ignored on a GPU and cost much in some kinds, so more is fetched
    than was asked for, and what may not be found is left out: any kind of searcher will do.
    Where few images may be found, or they are far from a query, each of them is compared instead,
    which is exact.

    Args:
        searcher: Searches all vectors.
        live: Ids that may be found, ascending; all of them must be in `searcher`.

    Attributes:
        all_ids: int64, those of the hidden vectors too, in the order of `searcher`.
    """

    def __init__(self, searcher: RescoringSearcher[Engine], live: Int64[ndarray, " live"]) -> None:
        self._searcher = searcher
        self._live = live
        self.all_ids = searcher.ids

    def search(
        self,
        queries: Float32[ndarray, "queries dim"],
        k: int,
        among: Int64[ndarray, " some"] | None = None,
    ) -> Found:
        """Find the k nearest images of each query that were not removed, best first.

        Args:
            queries: Unit vectors.
            k: At least 1; there are no more hits than images that may be found.
            among: Ids of the images that may be found, ascending; None for all that are live.
        """
        wanted = self._live if among is None else among
        k, everything = min(k, len(wanted)), len(self.all_ids)
        hidden = everything - len(wanted)
        if not hidden:
            return self._searcher.search(queries, k)
        ids = np.full((len(queries), k), _NONE, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        if not k:
            return ids, scores
        pending = np.arange(len(queries))
        fetch, farthest = k + min(hidden, k + _SPARE), everything
        if among is not None:
            fetch = min(everything, max(fetch, 2 * k * everything // len(among)))
            farthest = 0 if len(among) <= _FEW else min(everything, max(_FARTHEST, 2 * k))
        while len(pending):
            if among is not None and fetch > farthest:
                nearest = self._searcher.nearest_among(queries[pending], k, among)
                ids[pending], scores[pending] = nearest
                break
            found, values = self._searcher.search(queries[pending], fetch)
            may = _are_in(wanted, found)
            # Stable: what may be found moves to the front, in the order it was found in.
            order = np.argsort(~may, axis=1, kind="stable")[:, :k]
            kept = np.take_along_axis(may, order, axis=1)
            ids[pending] = np.where(kept, np.take_along_axis(found, order, axis=1), _NONE)
            scores[pending] = np.where(kept, np.take_along_axis(values, order, axis=1), -np.inf)
            done = kept.all(axis=1)
            if among is not None and not self._searcher.engine.is_exact:
                far = may.mean(axis=1) < len(among) / everything / 2
                if far.any():  # an approximate kind hardly looks where these images are
                    nearest = self._searcher.nearest_among(queries[pending[far]], k, among)
                    ids[pending[far]], scores[pending[far]] = nearest
                    done |= far
            if fetch == everything:
                break
            pending = pending[~done]
            fetch = min(_GROWTH * fetch, everything)
        return ids, scores


def _are_in(
    wanted: Int64[ndarray, " some"], ids: Int64[ndarray, "queries k"]
) -> Bool[ndarray, "queries k"]:
    places = np.minimum(np.searchsorted(wanted, ids), len(wanted) - 1)
    return np.asarray(wanted[places] == ids)
