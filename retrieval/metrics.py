"""How good a search is, measured on tables of ids.

A table has one row per query and one column per rank, best first; -1 fills ranks that hold
nothing and never counts. Every metric returns one value per query, in 0..1, and NaN for a query
that cannot be judged because nothing is relevant to it. `summarize` averages them and counts
what it left out. Per query, so that a long list of queries can be worked through in chunks and
two encoders can be compared query by query.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Summary(NamedTuple):
    """The mean of a metric over the queries that could be judged.

    Attributes:
        mean: Mean value; NaN if no query could be judged.
        queries: Queries the mean is taken over.
        left_out: Queries with nothing relevant, which the mean leaves out.
    """

    mean: float
    queries: int
    left_out: int


def summarize(values: Float[np.ndarray, " queries"]) -> Summary:
    """Average a metric over the queries that could be judged."""
    judged = values[~np.isnan(values)]
    mean = float(judged.mean()) if judged.size else math.nan
    return Summary(mean, judged.size, values.size - judged.size)


def drop_self(
    ids: Int[np.ndarray, "queries ranks"], own: Int[np.ndarray, "queries copies"]
) -> Int[np.ndarray, "queries ranks"]:
    """Take the query itself out of its own answer; what follows moves up.

    Search for `ranks + copies` images and drop, and `ranks` are sure to remain.

    Args:
        ids: What each query found, best first.
        own: The ids that are the query itself, -1 where there are fewer than `copies`.

    Returns:
        A table of the same shape, filled up with -1 at the end.

    Raises:
        ValueError: If the tables have different numbers of rows.
    """
    _check_rows(ids, own)
    is_self = np.zeros(ids.shape, dtype=bool)
    for copy in own.T:  # rarely more than one; a broadcast table would be `copies` times larger
        is_self |= ids == copy[:, None]
    order = np.argsort(is_self, axis=1, kind="stable")  # stable: the others keep their order
    kept = np.where(is_self, -1, ids)
    return np.asarray(np.take_along_axis(kept, order, axis=1))


def relevance(
    hit_labels: Int[np.ndarray, "queries ranks"], query_labels: Int[np.ndarray, " queries"]
) -> Bool[np.ndarray, "queries ranks"]:
    """Mark the hits that have their query's label; a negative label means none and matches none.

    Raises:
        ValueError: If the tables have different numbers of rows.
    """
    _check_rows(hit_labels, query_labels)
    return np.asarray((hit_labels == query_labels[:, None]) & (hit_labels >= 0))


def hit_rate(
    relevant: Bool[np.ndarray, "queries ranks"], total_relevant: Int[np.ndarray, " queries"], k: int
) -> Float[np.ndarray, " queries"]:
    """Whether some relevant image is in the top k (metric learning's Recall@K).

    With class labels and k=1 its mean, `hit_rate@1`, is the accuracy of 1-nearest-neighbour
    classification: what others call accuracy@1, Recall@1, `precision_at_1` or P@1.

    Args:
        relevant: Which ranks hold a relevant image.
        total_relevant: Relevant images in the whole index, the query itself not counted.
        k: Ranks looked at.

    Raises:
        ValueError: If k is outside 1..ranks or a query found more than there is.
    """
    _check_k(k, relevant)
    _check_total(relevant, total_relevant)
    return _left_out_as_nan(np.asarray(relevant[:, :k].any(axis=1)), total_relevant)


def recall(
    relevant: Bool[np.ndarray, "queries ranks"], total_relevant: Int[np.ndarray, " queries"], k: int
) -> Float[np.ndarray, " queries"]:
    """Share of all relevant images that are in the top k.

    With more than k relevant images it stays below 1 even for a perfect answer.

    Raises:
        ValueError: If k is outside 1..ranks or a query found more than there is.
    """
    _check_k(k, relevant)
    _check_total(relevant, total_relevant)
    found = relevant[:, :k].sum(axis=1) / np.maximum(total_relevant, 1)
    return _left_out_as_nan(found, total_relevant)


def map_at_r(
    relevant: Bool[np.ndarray, "queries ranks"], total_relevant: Int[np.ndarray, " queries"]
) -> Float[np.ndarray, " queries"]:
    """Average precision over the top R, where R is the query's number of relevant images.

    The sum of the precision at every relevant rank up to R, divided by R: 1 only if the R
    relevant images fill the first R ranks.

    References:
        A Metric Learning Reality Check, which proposes it. https://arxiv.org/abs/2003.08505

    Raises:
        ValueError: If the table has fewer than R ranks or a query found more than there is.
    """
    ranks = relevant.shape[1]
    deepest = int(total_relevant.max(initial=0))
    if deepest > ranks:
        raise ValueError(
            f"MAP@R needs as many ranks as a query has relevant images, here {deepest}, but the "
            f"table has {ranks}; search with k={deepest}"
        )
    _check_total(relevant, total_relevant)
    rank = np.arange(1, ranks + 1)
    counted = relevant & (rank <= total_relevant[:, None])
    precision = np.cumsum(counted, axis=1) / rank
    average = (precision * counted).sum(axis=1) / np.maximum(total_relevant, 1)
    return _left_out_as_nan(average, total_relevant)


def overlap(
    ids: Int[np.ndarray, "queries ranks"], reference_ids: Int[np.ndarray, "queries more"], k: int
) -> Float[np.ndarray, " queries"]:
    """Share of the reference's top k that is also in the top k of `ids`, in any order.

    With the full encoder's answers as the reference it says, without any labels, how much of
    the search a smaller encoder preserves; with those of an exact search to the same vectors it
    is what other places call `ann_recall@k`.

    Raises:
        ValueError: If k is outside 1..ranks of either table or a row holds an id twice.
    """
    _check_rows(ids, reference_ids)
    _check_k(k, ids)
    _check_k(k, reference_ids)
    mine, reference = ids[:, :k], reference_ids[:, :k]
    if _repeats(mine).any() or _repeats(reference).any():
        raise ValueError("an id is in the same row twice; every hit of a query must be distinct")
    # Distinct in either table, so an id that repeats in both together is in both.
    shared = _repeats(np.concatenate([mine, reference], axis=1))
    wanted = (reference >= 0).sum(axis=1)
    return _left_out_as_nan(shared / np.maximum(wanted, 1), wanted)


def retained(value: float, full: float) -> float:
    """Share of the full encoder's metric that a submodel keeps; NaN where the full one has 0."""
    return value / full if full else math.nan


def _left_out_as_nan(
    values: np.ndarray, total_relevant: Int[np.ndarray, " queries"]
) -> Float[np.ndarray, " queries"]:
    """Blank the queries that nothing is relevant to."""
    return np.where(total_relevant > 0, values, np.nan)


def _repeats(ids: Int[np.ndarray, "queries ranks"]) -> Int[np.ndarray, " queries"]:
    """Count, per row, the ids that are there once more; padding not counted."""
    ordered = np.sort(ids, axis=1)
    again = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    return np.asarray(again.sum(axis=1))


def _check_rows(first: np.ndarray, second: np.ndarray) -> None:
    """Refuse tables about different queries."""
    if len(first) != len(second):
        raise ValueError(f"both tables need a row per query, got {len(first)} and {len(second)}")


def _check_k(k: int, table: np.ndarray) -> None:
    """Refuse a k that the table cannot answer."""
    if not 1 <= k <= table.shape[1]:
        raise ValueError(f"k must be within 1..{table.shape[1]}, the ranks in the table; got {k}")


def _check_total(relevant: np.ndarray, total_relevant: np.ndarray) -> None:
    """Refuse a table that finds more than there is: a repeated id, or the query itself."""
    _check_rows(relevant, total_relevant)
    found = relevant.sum(axis=1)
    wrong = np.flatnonzero(found > total_relevant)
    if wrong.size:
        query = int(wrong[0])
        raise ValueError(
            f"query {query} has {found[query]} relevant hits, but only {total_relevant[query]} "
            "images are relevant to it; drop repeated ids and the query itself"
        )
