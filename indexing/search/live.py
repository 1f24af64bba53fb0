"""Hiding what was removed from whatever searches, all kinds alike."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from indexing.search.scoring import Found
from indexing.search.searcher import Searcher

_NONE = -1
_SPARE = 16
_GROWTH = 4


class LiveSearcher:
    """Searches for what was not removed.

    FAISS's own selectors are ignored on a GPU and cost much in some kinds, so more is fetched
    than was asked for, and what was removed is left out: any kind of searcher will do.

    Args:
        searcher: Searches all vectors.
        live: Ids that may be found, ascending; all of them must be in `searcher`.

    Attributes:
        all_ids: int64, those of the hidden vectors too, in the order of `searcher`.
    """

    def __init__(self, searcher: Searcher, live: Int64[ndarray, " live"]) -> None:
        self._searcher = searcher
        self._live = live
        self.all_ids = searcher.ids

    def search(self, queries: Float32[ndarray, "queries dim"], k: int) -> Found:
        """Find the k nearest images of each query that were not removed, best first.

        Args:
            queries: Unit vectors.
            k: At least 1; there are no more hits than live images.
        """
        k = min(k, len(self._live))
        removed = len(self.all_ids) - len(self._live)
        if not removed:
            return self._searcher.search(queries, k)
        ids = np.full((len(queries), k), _NONE, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        pending = np.arange(len(queries))
        fetch = k + min(removed, k + _SPARE)
        while len(pending):
            found, values = self._searcher.search(queries[pending], fetch)
            alive = self._is_live(found)
            # Stable: what is alive moves to the front, in the order it was found in.
            order = np.argsort(~alive, axis=1, kind="stable")[:, :k]
            kept = np.take_along_axis(alive, order, axis=1)
            ids[pending] = np.where(kept, np.take_along_axis(found, order, axis=1), _NONE)
            scores[pending] = np.where(kept, np.take_along_axis(values, order, axis=1), -np.inf)
            if fetch == len(self.all_ids):
                break
            pending = pending[~kept.all(axis=1)]
            fetch = min(_GROWTH * fetch, len(self.all_ids))
        return ids, scores

    def _is_live(self, ids: Int64[ndarray, "queries k"]) -> Bool[ndarray, "queries k"]:
        places = np.minimum(np.searchsorted(self._live, ids), len(self._live) - 1)
        return np.asarray(self._live[places] == ids)
