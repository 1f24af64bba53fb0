"""Exact scores of candidates, computed one pair at a time, and the order among them.

FAISS promises neither an order among equal scores nor the same last bit for the same pair, and
its quantised kinds only estimate scores. So FAISS proposes candidates; here they get their scores,
from the vectors that FAISS holds or those on disk.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
from faiss.contrib.exhaustive_search import knn_ground_truth
from jaxtyping import Float32, Int64
from numpy import ndarray

from indexing.search.engine import Engine
from indexing.store.embeddings import Embeddings

SPARE = 16
"""Candidates beyond k, so that a tie at rank k rarely needs a second search."""

_PAIRS_OF_ONE_THREAD = 4_096  # scored in the time that it takes to wake another thread
_BYTES_AT_ONCE = 1 << 21  # of vectors, which are still in the cache when they are compared
_ROWS_PER_BLOCK = 65_536
_GROWTH = 4


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


class ExactScores:
    """Cosines of queries and stored embeddings, each computed in float32 from its own pair alone.

    Args:
        engine: Its vectors are used if it keeps them whole, since they lie in memory.
        embeddings: Used if not.
    """

    def __init__(self, engine: Engine, embeddings: Embeddings) -> None:
        self._table = engine.float_table
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


def nearest(
    queries: Float32[ndarray, "queries dim"],
    k: int,
    embeddings: Embeddings,
    scores: ExactScores,
    names: Int64[ndarray, " rows"],
) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
    """Find the k nearest rows of each query, whatever the rounding; equal scores by smaller name.

    Args:
        queries: Unit vectors.
        k: Within 1..rows.
        embeddings: The table.
        scores: Of its rows.
        names: What to call each row.

    Returns:
        Names and exact scores, best first.
    """
    return _fetching(queries, k, min(k + SPARE, len(embeddings)), embeddings, scores, names)


def _fetching(
    queries: Float32[ndarray, "queries dim"],
    k: int,
    fetch: int,
    embeddings: Embeddings,
    scores: ExactScores,
    names: Int64[ndarray, " rows"],
) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
    """Take the best of so many candidates; of more where one left out could be among them."""
    blocks = (
        embeddings[start : start + _ROWS_PER_BLOCK]
        for start in range(0, len(embeddings), _ROWS_PER_BLOCK)
    )
    proposed, rows = knn_ground_truth(  # type: ignore[no-untyped-call]
        queries, blocks, fetch, faiss.METRIC_INNER_PRODUCT, ngpu=0
    )
    found, best = best_first(names[rows], scores.of(queries, rows), k)
    if fetch < len(embeddings):
        doubtful = best[:, -1] - proposed[:, -1] <= rounding(embeddings.shape[1])
        if doubtful.any():
            more = min(_GROWTH * fetch, len(embeddings))
            found[doubtful], best[doubtful] = _fetching(
                queries[doubtful], k, more, embeddings, scores, names
            )
    return found, best
