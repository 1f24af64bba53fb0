"""Metrics against hand-written tables, a slow version of each definition, and scikit-learn.

Mutants these tests must catch: precision divided by k instead of by the rank; MAP@R that looks
past rank R; recall divided by k; padding counted as a hit, or as a reference hit; queries with
nothing relevant counted as zero; order mattering to overlap; a query that is in the index twice
dropped only once.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import average_precision_score, recall_score

from retrieval.metrics import (
    drop_self,
    hit_rate,
    map_at_r,
    overlap,
    recall,
    relevance,
    retained,
    summarize,
)

T, F = True, False
HAND_TABLE = np.array([[T, F, T, F], [F, F, T, T], [F, F, F, F], [F, F, F, F]])
HAND_TOTAL = np.array([3, 2, 5, 0])


@st.composite
def tables(draw):
    """Draw relevance per rank, relevant images in all, and a k that the table can answer."""
    queries, ranks = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    rows = draw(
        st.lists(st.lists(st.booleans(), min_size=ranks, max_size=ranks), min_size=queries,
                 max_size=queries)
    )  # fmt: skip
    total = [draw(st.integers(sum(row), ranks)) for row in rows]
    return np.array(rows), np.array(total), draw(st.integers(1, ranks))


@st.composite
def id_tables(draw):
    """Draw two tables of distinct ids in random order, padded at the end, and a k."""
    queries, ranks = draw(st.integers(1, 5)), draw(st.integers(1, 6))

    def row():
        ids = draw(st.lists(st.integers(0, 8), unique=True, max_size=ranks))
        return ids + [-1] * (ranks - len(ids))

    def table():
        return np.array([row() for _ in range(queries)])

    return table(), table(), draw(st.integers(1, ranks))


def test_hit_rate_of_a_hand_written_table():
    assert_array_equal(hit_rate(HAND_TABLE, HAND_TOTAL, 1), [1, 0, 0, np.nan])
    assert_array_equal(hit_rate(HAND_TABLE, HAND_TOTAL, 3), [1, 1, 0, np.nan])


def test_recall_of_a_hand_written_table():
    assert_allclose(recall(HAND_TABLE, HAND_TOTAL, 2), [1 / 3, 0, 0, np.nan])
    assert_allclose(recall(HAND_TABLE, HAND_TOTAL, 4), [2 / 3, 1, 0, np.nan])


def test_map_at_r_of_a_hand_written_table():
    table = np.array([[T, F, T, F], [F, T, T, T], [T, T, F, T], [F, F, F, F]])
    total = np.array([3, 4, 2, 0])
    expected = [(1 / 1 + 2 / 3) / 3, (1 / 2 + 2 / 3 + 3 / 4) / 4, 1, np.nan]
    # The third row's R is 2: its hit at rank 4 cannot be one of two relevant images as well.
    table[2, 3] = F
    assert_allclose(map_at_r(table, total), expected)


def test_map_at_r_does_not_look_past_rank_r():
    assert_allclose(map_at_r(np.array([[F, F, T, T]]), np.array([2])), [0])


def test_overlap_of_a_hand_written_table():
    ids = np.array([[3, 1, 2], [7, 8, 9], [4, 5, -1], [0, 1, 2]])
    reference = np.array([[1, 2, 3], [9, 1, 2], [5, -1, -1], [-1, -1, -1]])
    assert_allclose(overlap(ids, reference, 3), [1, 1 / 3, 1, np.nan])
    assert_allclose(overlap(ids, reference, 2), [1 / 2, 0, 1, np.nan])


def test_summary_leaves_out_and_counts_queries_with_nothing_relevant():
    summary = summarize(hit_rate(HAND_TABLE, HAND_TOTAL, 1))
    assert summary == (pytest.approx(1 / 3), 3, 1)


def test_summary_of_nothing_is_not_a_number():
    mean, queries, left_out = summarize(np.array([np.nan, np.nan]))
    assert math.isnan(mean)
    assert (queries, left_out) == (0, 2)


def test_retained_is_the_share_of_the_full_metric():
    assert retained(0.45, 0.9) == 0.5
    assert math.isnan(retained(0.0, 0.0))


def test_relevance_ignores_hits_and_queries_without_a_label():
    hits = np.array([[0, 1, -1], [1, 1, 0], [-1, 0, -1]])
    assert_array_equal(
        relevance(hits, np.array([1, 1, -1])), [[F, T, F], [T, T, F], [F, F, F]]
    )  # fmt: skip


def test_drop_self_moves_the_rest_up():
    ids = np.array([[5, 3, 4], [3, 5, 4], [3, 4, -1], [5, 6, 4]])
    own = np.array([[5, -1], [5, -1], [9, -1], [6, 5]])
    assert_array_equal(
        drop_self(ids, own), [[3, 4, -1], [3, 4, -1], [3, 4, -1], [4, -1, -1]]
    )  # fmt: skip


def test_drop_self_keeps_the_order_of_long_answers():
    ids = np.random.default_rng(0).permutation(1000)[None]
    kept = drop_self(ids, ids[:, [3, 500]])
    assert_array_equal(kept[0, :998], np.delete(ids[0], [3, 500]))


@given(id_tables())
def test_drop_self_equals_a_list_filter(case):
    ids, own, _ = case
    for row, copies, kept in zip(ids, own, drop_self(ids, own), strict=True):
        expected = [i for i in row if i >= 0 and i not in copies]
        assert list(kept) == expected + [-1] * (len(row) - len(expected))


@given(tables())
def test_metrics_equal_their_slow_definitions(case):
    table, total, k = case
    hits, shares, precisions = [], [], []
    for row, relevant in zip(table.tolist(), total.tolist(), strict=True):
        at = [sum(row[:i]) / i for i in range(1, relevant + 1) if row[i - 1]]
        hits.append(float(sum(row[:k]) > 0) if relevant else np.nan)
        shares.append(sum(row[:k]) / relevant if relevant else np.nan)
        precisions.append(sum(at) / relevant if relevant else np.nan)
    assert_array_equal(hit_rate(table, total, k), hits)
    assert_allclose(recall(table, total, k), shares, rtol=1e-12)
    assert_allclose(map_at_r(table, total), precisions, rtol=1e-12)


@given(id_tables())
def test_overlap_equals_set_intersection(case):
    ids, reference, k = case
    for row, wanted, value in zip(ids, reference, overlap(ids, reference, k), strict=True):
        found, top = set(row[:k]) - {-1}, set(wanted[:k]) - {-1}
        assert value == pytest.approx(len(found & top) / len(top) if top else np.nan, nan_ok=True)


@given(tables())
def test_recall_equals_scikit_learn(case):
    table, _, k = case
    values = recall(table, table.sum(axis=1), k)
    for row, value in zip(table, values, strict=True):
        if row.any():
            retrieved = np.arange(len(row)) < k
            assert value == pytest.approx(recall_score(row, retrieved))


@given(tables())
def test_map_at_r_is_scikit_learns_average_precision_of_the_first_r_ranks(case):
    table, total, _ = case
    for row, relevant, value in zip(table, total, map_at_r(table, total), strict=True):
        top = row[:relevant]
        if top.any():  # average precision divides by what was found, MAP@R by what there is
            expected = average_precision_score(top, -np.arange(relevant)) * top.sum() / relevant
            assert value == pytest.approx(expected)


@given(tables())
def test_padding_a_table_changes_nothing(case):
    table, total, k = case
    padded = np.hstack([table, np.zeros((len(table), 3), dtype=bool)])
    assert_array_equal(recall(padded, total, k), recall(table, total, k))
    assert_allclose(map_at_r(padded, total), map_at_r(table, total), rtol=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_outside_the_table_is_an_error(k):
    message = rf"k must be within 1\.\.4, the ranks in the table; got {k}"
    ids = np.arange(16).reshape(4, 4)
    for call in (
        lambda: hit_rate(HAND_TABLE, HAND_TOTAL, k),
        lambda: recall(HAND_TABLE, HAND_TOTAL, k),
        lambda: overlap(ids, ids, k),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_map_at_r_of_a_table_without_r_ranks_is_an_error():
    with pytest.raises(ValueError, match="here 5, but the table has 4; search with k=5"):
        map_at_r(HAND_TABLE, HAND_TOTAL)


def test_finding_more_than_there_is_is_an_error():
    with pytest.raises(ValueError, match="query 1 has 2 relevant hits, but only 1 images"):
        recall(HAND_TABLE, np.array([3, 1, 5, 0]), 1)


def test_an_id_twice_in_a_row_is_an_error():
    once, twice = np.array([[1, 2]]), np.array([[1, 1]])
    for ids, reference in ((once, twice), (twice, once)):
        with pytest.raises(ValueError, match="every hit of a query must be distinct"):
            overlap(ids, reference, 2)


def test_tables_about_different_queries_are_an_error():
    with pytest.raises(ValueError, match="a row per query, got 1 and 2"):
        overlap(np.zeros((1, 1), dtype=int), np.zeros((2, 1), dtype=int), 1)
