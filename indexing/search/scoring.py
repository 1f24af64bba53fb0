"""Exact scores of candidates, computed one pair at a time, and the order among them.

FAISS promises neither an order among equal scores nor the same last bit for the same pair: a large
batch of queries goes through another kernel than a small one, and quantised kinds only estimate.
So FAISS proposes candidates; here they get their scores, from the vectors that it holds or from
those on disk.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
from faiss.contrib.exhaustive_search import knn_ground_truth
from jaxtyping import Float32, Int64
from numpy import ndarray

from indexing.store.embeddings import Vectors

RANKS = 10
"""How many of the nearest images a search is measured by."""

SPARE = 16
"""Candidates beyond k, so that a tie at rank k rarely needs a second search."""

_PAIRS_OF_ONE_THREAD = 4_096  # scored in the time that it takes to wake another thread
_BYTES_AT_ONCE = 1 << 21  # of vectors, which are still in the cache when they are compared
_ROWS_PER_BLOCK = 65_536
_GROWTH = 4

Found = tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]
"""Ids and scores of what a search found, best first, one row per query."""


class ExactScores:
    """Cosines of queries and stored embeddings, each computed in float32 from its own pair alone.

    Args:
        table: FAISS pointer to the vectors as float32, if they lie in memory; else None.
        embeddings: The same vectors, read if there is no table.
    """

    def __init__(
        self,
        table: Any,  # noqa: ANN401 -- a pointer has no type in Python
        embeddings: Vectors,
    ) -> None:
        self._table = table
        self._embeddings = embeddings
        self._pairs = max(1, _BYTES_AT_ONCE // (4 * embeddings.shape[1]))

    def of(
        self, queries: Float32[ndarray, "queries dim"], rows: Int64[ndarray, "queries fetch"]
    ) -> Float32[ndarray, "queries fetch"]:
        """Score the candidates of each query, given as rows of the table; -inf for row -1.

        Many are scored on as many threads as FAISS uses.
        """
        if self._table is not None:
            return pair_scores(queries, self._table, rows)
        size = max(1, self._pairs // rows.shape[1])
        if len(rows) <= size:
            return self._from_disk(queries, rows)
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]
        with ThreadPoolExecutor(min(len(parts), faiss.omp_get_max_threads())) as threads:
            scores = threads.map(lambda run: self._from_disk(queries[run], rows[run]), parts)
            return np.concatenate(list(scores))

    def nearest(
        self,
        queries: Float32[ndarray, "queries dim"],
        k: int,
        names: Int64[ndarray, " rows"],
        among: Int64[ndarray, " some"] | None = None,
    ) -> Found:
        """Find the k nearest rows of each query without any search structure.

        Args:
            queries: Unit vectors.
            k: Within 1..rows.
            names: What to call each row; equal scores are ordered by smaller name.
            among: Rows that may be found; None for all.

        Returns:
            Names and scores, best first, whatever the rounding.
        """
        rows = np.arange(len(self._embeddings)) if among is None else among
        return self._nearest(queries, k, names, rows, min(k + SPARE, len(rows)))

    def _nearest(
        self,
        queries: Float32[ndarray, "queries dim"],
        k: int,
        names: Int64[ndarray, " rows"],
        among: Int64[ndarray, " some"],
        fetch: int,
    ) -> Found:
        """Take the best of so many candidates; of more where one left out could be among them."""
        blocks = (
            self._embeddings[among[start : start + _ROWS_PER_BLOCK]]
            for start in range(0, len(among), _ROWS_PER_BLOCK)
        )
        proposed, places = knn_ground_truth(  # type: ignore[no-untyped-call]
            queries, blocks, fetch, faiss.METRIC_INNER_PRODUCT, ngpu=0
        )
        rows = among[places]
        found, best = best_first(names[rows], self.of(queries, rows), k)
        doubtful = best[:, -1] - proposed[:, -1] <= rounding(self._embeddings.shape[1])
        if fetch < len(among) and doubtful.any():
            more = min(_GROWTH * fetch, len(among))
            again = self._nearest(queries[doubtful], k, names, among, more)
            found[doubtful], best[doubtful] = again
        return found, best

    def _from_disk(
        self, queries: Float32[ndarray, "queries dim"], rows: Int64[ndarray, "queries fetch"]
    ) -> Float32[ndarray, "queries fetch"]:
        there = rows >= 0
        if there.all():
            vectors = self._embeddings[rows.reshape(-1)]
            places = np.arange(rows.size).reshape(rows.shape)
        else:
            vectors = self._embeddings[rows[there]]
            places = np.full(rows.shape, -1, dtype=np.int64)
            places[there] = np.arange(len(vectors))
        return pair_scores(queries, faiss.swig_ptr(vectors), places)


def pair_scores(
    queries: Float32[ndarray, "queries dim"],
    table: Any,  # noqa: ANN401 -- a pointer has no type in Python
    rows: Int64[ndarray, "queries fetch"],
) -> Float32[ndarray, "queries fetch"]:
    """Inner products of each query with its own candidates; -inf for row -1.

    Args:
        queries: Unit vectors.
        table: FAISS pointer to float32 vectors of the same dimension.
        rows: Of the table; not checked.
    """
    scores = np.empty(rows.shape, dtype=np.float32)
    threads = faiss.omp_get_max_threads()
    few = rows.size <= _PAIRS_OF_ONE_THREAD
    if few:
        faiss.omp_set_num_threads(1)  # for the calling thread alone
    try:
        faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
            faiss.swig_ptr(scores),
            faiss.swig_ptr(queries),
            table,
            faiss.swig_ptr(rows),
            queries.shape[1],
            *rows.shape,
        )
    finally:
        if few:
            faiss.omp_set_num_threads(threads)
    scores[rows < 0] = -np.inf
    return scores


def best_first(
    ids: Int64[ndarray, "queries fetch"], scores: Float32[ndarray, "queries fetch"], k: int
) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
    """Keep the k best candidates of each query, equal scores by smaller id."""
    negative = -scores
    if len(ids) == 1:
        order = np.lexsort((ids, negative))[0, :k]
        return ids[:, order], scores[:, order]
    order = np.argsort(negative, axis=1)
    # Sorting by two keys takes ten times as long, and most queries have no equal scores.
    first = np.take_along_axis(negative, order[:, : k + 1], axis=1)
    tied = np.flatnonzero((first[:, 1:] == first[:, :-1]).any(axis=1))
    order[tied] = np.lexsort((ids[tied], negative[tied]))
    order = order[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)


def rounding(dim: int) -> float:
    """Twice the worst rounding error of a float32 inner product of unit vectors."""
    return dim * 2.0**-23
