"""Scores computed again, one pair at a time, and the order among them.

FAISS promises neither an order among equal scores nor the same last bit for the same pair, and
its quantised kinds only estimate scores. So FAISS proposes candidates; here they get their scores.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

SPARE = 16
"""Candidates beyond k, so that a tie at rank k rarely needs a second search."""

_PAIRS_OF_ONE_THREAD = 4_096  # scored in the time that it takes to wake another thread


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
