"""A score below which a hit is no good match, and how often that is wrong on somebody's images."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray

from indexing import IndexedImages
from retrieval.ground_truth import Wanted, find_others

MAX_FALSE_ACCEPTS = 0.05
_RANKS = 64
_STEPS = 10_000  # of a score: four decimals


class Cutoff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cut-off on the full encoder's scale, and what it lets through.

    Attributes:
        min_score: Hits that score less are no good match.
        right: What counts as right: a hit of the query's label; or, of queries that are altered
            images of the index, the image that they were made from.
        max_false_accepts: What the cut-off was chosen to allow.
        false_accepts: Share of other queries whose best wrong hit reaches it all the same: what
            somebody is shown who asks with something that is not there.
        kept: Share of other queries that have a right hit and see it.
        queries: How many other queries.
    """

    min_score: float
    right: Literal["label", "same image"]
    max_false_accepts: float
    false_accepts: float
    kept: float
    queries: int

    def describe(self) -> str:
        """Say in one line what it is worth."""
        return (
            f"cut-off: --min-score {self.min_score:g} shows {self.kept:.1%} of the queries a "
            f"right image ({self.right}) and {self.false_accepts:.1%} a wrong one, on "
            f"{self.queries:,} queries that did not choose it"
        )


class Scores(NamedTuple):
    """The best scores that some queries gave.

    Attributes:
        right: Of a right image; -inf where none was found, NaN where there is none.
        wrong: Of a wrong one; -inf for none.
    """

    right: Float[ndarray, " queries"]
    wrong: Float[ndarray, " queries"]


def best_scores(
    index: IndexedImages,
    wanted: Wanted,
    vectors: Float32[ndarray, "queries dim"],
    *,
    has_labels: bool,
) -> Scores:
    """Find the best right and the best wrong image of each query.

    With labels 64 hits are looked at: where all of them are right, the score of the last stands
    for the best wrong one, which cannot be higher.

    Args:
        index: Who is asked.
        wanted: What is right. Without labels the queries' own images must be in the index.
        vectors: The queries, embedded at full size.
        has_labels: Whether right is what has the query's label.
    """
    own = wanted.own
    if not has_labels:
        stored = index.embeddings[np.maximum(own, 0).ravel()].reshape(*own.shape, -1)
        to_own = np.einsum("qd,qcd->qc", vectors, stored)
        right = np.where(own >= 0, to_own, -np.inf).max(axis=1)
        return Scores(right, find_others(index, vectors, own, 1)[1][:, 0].astype(np.float64))
    rows, scores = find_others(index, vectors, own, _RANKS)
    labels, asked = np.append(index.labels, -1)[rows], wanted.labels
    judged = (labels >= 0) & (rows >= 0)
    is_right = judged & (labels == asked[:, None])
    right = np.where(is_right, scores, -np.inf).max(axis=1)
    wrong = np.where(judged & ~is_right, scores, -np.inf).max(axis=1)
    wrong = np.where(is_right.all(axis=1), scores[:, -1], wrong)
    right = np.where(wanted.total > 0, right, np.nan)
    known = asked >= 0
    return Scores(right[known], wrong[known])


def choose_cutoff(
    choosing: Scores,
    reporting: Scores,
    right: Literal["label", "same image"],
    max_false_accepts: float = MAX_FALSE_ACCEPTS,
) -> Cutoff | None:
    """Choose the lowest cut-off that lets few wrong images through, and see on other queries.

    Args:
        choosing: Scores to choose by.
        reporting: Scores of other queries.
        right: What counts as right in both.
        max_false_accepts: Share of the choosing queries that may see a wrong image.

    Returns:
        The cut-off; None where there is nothing to choose by.
    """
    if not len(choosing.wrong) or not (reporting.right > -np.inf).any():
        return None
    worst_first = np.sort(choosing.wrong)[::-1]
    allowed = int(max_false_accepts * len(worst_first))
    limit = float(worst_first[min(allowed, len(worst_first) - 1)])
    # Just above the first that may not pass: a score that reaches a cut-off passes it.
    score = -1.0 if limit == -math.inf else min(1.0, (math.floor(limit * _STEPS) + 1) / _STEPS)
    judged = reporting.right[~np.isnan(reporting.right)]
    return Cutoff(
        min_score=score,
        right=right,
        max_false_accepts=max_false_accepts,
        false_accepts=float((reporting.wrong >= score).mean()),
        kept=float((judged >= score).mean()),
        queries=len(reporting.wrong),
    )
