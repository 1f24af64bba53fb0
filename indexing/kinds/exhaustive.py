"""The nearest rows of a table of embeddings, found without a search structure."""

from __future__ import annotations

import faiss
from faiss.contrib.exhaustive_search import knn_ground_truth
from jaxtyping import Float32, Int64
from numpy import ndarray

from indexing.embeddings import Embeddings
from indexing.kinds.scoring import ExactScores
from indexing.rescore import SPARE, best_first, rounding

_ROWS_PER_BLOCK = 65_536
_GROWTH = 4


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
