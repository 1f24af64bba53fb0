from __future__ import annotations

import numpy as np
import pytest

from retrieval.tuning.score_scale import ScoreScale


def made_up(seed=0, count=5000):
    full = np.sort(np.random.default_rng(seed).beta(5, 2, count))
    return full, full**2 * 0.9 - 0.1  # any ascending distortion


def test_a_threshold_lets_the_same_share_through_at_every_size():
    full, small = made_up()
    scale = ScoreScale.fit(*map(np.random.default_rng(1).permutation, (small, full)))
    other_full, other_small = made_up(seed=2)
    for threshold in (0.4, 0.6, 0.8, 0.9):
        wanted = (other_full > threshold).mean()
        assert (scale.to_full(other_small) > threshold).mean() == pytest.approx(wanted, abs=0.01)
        assert abs((other_small > threshold).mean() - wanted) > 0.03  # it would not without


def test_order_is_kept_within_and_beyond_what_was_seen():
    full, small = made_up()
    scores = np.linspace(-0.5, 0.79, 300)
    assert (np.diff(ScoreScale.fit(small, full).to_full(scores)) > 0).all()


def test_no_score_becomes_larger_than_a_cosine_can_be():
    scale = ScoreScale(submodel=(0.2, 0.5, 0.9, 0.9001), full=(0.2, 0.5, 0.9, 0.97))
    assert scale.to_full(np.array([0.91, 0.95, 1.0])).tolist() == pytest.approx([0.9799, 1, 1])


def test_the_full_encoders_own_scores_stay_what_they_are():
    full, _ = made_up()
    scores = np.linspace(0, 1, 50)
    np.testing.assert_allclose(ScoreScale.fit(full, full).to_full(scores), scores, atol=1e-12)


def test_missing_hits_are_left_out_and_too_few_scores_make_no_scale():
    full, small = made_up(count=200)
    holes = np.append(small, [-np.inf] * 50)
    assert ScoreScale.fit(holes, full) == ScoreScale.fit(small, full)
    assert ScoreScale.fit(np.full(10, 0.5), full) is None
    assert ScoreScale.fit(np.full(10, -np.inf), full) is None


@pytest.mark.parametrize(
    ("submodel", "full", "message"),
    [
        ((0.1,), (0.1,), "at least two, got 1 and 1"),
        ((0.1, 0.2), (0.1, 0.2, 0.3), "got 2 and 3"),
        ((0.2, 0.1), (0.1, 0.2), "must ascend"),
        ((0.1, 0.2), (0.2, 0.1), "must ascend"),
    ],
)
def test_a_scale_that_makes_no_sense_is_refused(submodel, full, message):
    with pytest.raises(ValueError, match=message):
        ScoreScale(submodel=submodel, full=full)
