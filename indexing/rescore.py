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
    scores = np.full(rows.shape, -np.inf, dtype=np.float32)
    faiss.fvec_inner_products_by_idx(  # type: ignore[attr-defined]
        faiss.swig_ptr(scores),
        faiss.swig_ptr(queries),
        table,
        faiss.swig_ptr(rows),
        queries.shape[1],
        *rows.shape,
    )
    scores[rows < 0] = -np.inf
    return scores


def best_first(
    ids: Int64[ndarray, "queries fetch"], scores: Float32[ndarray, "queries fetch"], k: int
) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
    """Keep the k best candidates of each query, equal scores by smaller id."""
    order = np.lexsort((ids, -scores))[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)


def rounding(dim: int) -> float:
    """Twice the worst rounding error of a float32 inner product of unit vectors."""
    return dim * 2.0**-23
