"""Mutant to catch: the divergence taken the other way round."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import rel_entr, softmax
from scipy.stats import spearmanr

from benchmarks.consistency import kl_divergence, rank_correlation, top1_agreement


def test_agreement_looks_at_the_most_likely_class_only():
    full = np.array([[1.0, 2.0, 0.0], [5.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    submodel = np.array([[8.0, 9.0, 0.0], [1.0, 5.0, 1.0], [2.0, 1.0, 7.0]])
    assert top1_agreement(full, submodel).tolist() == [True, False, False]


def test_divergence_equals_scipys():
    rng = np.random.default_rng(0)
    full, submodel = rng.normal(size=(2, 20, 7)) * 3
    expected = rel_entr(softmax(full, axis=1), softmax(submodel, axis=1)).sum(axis=1)
    np.testing.assert_allclose(kl_divergence(full, submodel), expected, rtol=1e-9)
    assert not np.allclose(kl_divergence(submodel, full), expected)


def test_equal_distributions_do_not_diverge_however_large_the_scores():
    scores = np.array([[1e4, -1e4, 0.0], [3.0, 2.0, 1.0]], dtype=np.float32)
    assert kl_divergence(scores, scores + 5).tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("compare", [top1_agreement, kl_divergence])
def test_tables_of_different_shapes_are_refused(compare):
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 4\)"):
        compare(np.ones((2, 3)), np.ones((2, 4)))


def test_rank_correlation_equals_scipys_query_by_query():
    rng = np.random.default_rng(0)
    full = rng.integers(0, 12, (20, 30)).astype(float)  # with ties
    submodel = full + rng.normal(0, 4, full.shape)
    expected = [spearmanr(a, b).statistic for a, b in zip(full, submodel, strict=True)]
    np.testing.assert_allclose(rank_correlation(full, submodel), expected)
    np.testing.assert_allclose(rank_correlation(full, 3 * full + 1), 1)
    assert np.isnan(rank_correlation(full, np.zeros_like(full))).all()
