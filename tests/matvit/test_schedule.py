from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_training import RECIPE

from matvit.training.recipes import Phase, Schedule


def test_schedule_warms_up_and_ends_near_zero():
    schedule = Schedule(replace(RECIPE, phases=(Phase(epochs=100, img_size=16),)), 80)
    rates = [schedule.learning_rate(step) for step in range(schedule.total_steps)]
    peak = rates.index(max(rates))
    assert len(rates) == 1000
    assert 95 <= peak <= 105
    assert max(rates) == pytest.approx(RECIPE.learning_rate)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-5 * max(rates) * 10


def test_schedule_walks_through_the_phases():
    schedule = Schedule(RECIPE, 32)
    assert [schedule.phase(step).img_size for step in (0, 7, 8, 19)] == [8, 8, 16, 16]
    assert schedule.total_steps == 20


def test_a_recipe_without_steps_is_refused():
    with pytest.raises(ValueError, match="recipe test has no steps on 30 images"):
        Schedule(replace(RECIPE, phases=(Phase(epochs=0.01, img_size=16),)), 30)
