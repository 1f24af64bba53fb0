from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from tiny_training import RECIPE

from matvit.mixes import trained_sizes
from matvit.submodel import Submodel
from matvit.training.recipes import RECIPES, recipe
from matvit.training.schedule import RANDOM, RANDOM_SCHEDULE, Phase, Schedule, of_length


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_found_by_its_name_and_says_what_it_does(name):
    found = recipe(name)
    assert found.name == name
    assert found.preprocess().img_size == found.model.img_size
    assert json.loads(json.dumps(found.to_dict()))["name"] == name


@pytest.mark.parametrize("name", RECIPES)
def test_every_phase_fits_its_model(name):
    model = recipe(name).model
    for phase in recipe(name).phases:
        assert phase.img_size % model.patch_size == 0
        assert len(phase.sizes) == len(phase.weights)
        for size in set(phase.sizes) - {RANDOM, RANDOM_SCHEDULE}:
            Submodel.parse(size, depth=model.depth, hidden_dim=model.hidden_dim)


def test_the_joint_recipe_trains_the_four_sizes_of_the_paper_from_the_start():
    (phase,) = recipe("joint64").phases
    assert list(phase.sizes) == [str(size) for size in trained_sizes(recipe("joint64").model)]
    assert set(phase.weights) == {1.0}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("max_steps", [1, 2, 3, 7, 100, 10**9])
def test_a_run_takes_exactly_as_many_steps_as_it_may(name, max_steps):
    full = Schedule(recipe(name), 50_000).total_steps
    shorter = of_length(recipe(name), 50_000, max_steps=max_steps)
    assert Schedule(shorter, 50_000).total_steps == min(full, max_steps)
    assert full > 100
    if max_steps >= 100:
        assert len(shorter.phases) == len(recipe(name).phases)
    if max_steps >= full:
        assert shorter == recipe(name)


def test_a_run_of_other_epochs_keeps_the_proportions_of_its_phases():
    longer = of_length(recipe("plain32"), 100_000, epochs=18)
    assert [phase.epochs for phase in longer.phases] == pytest.approx([14, 3, 1])
    assert of_length(recipe("plain32"), 100_000) == recipe("plain32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0.0}, "epochs must be a number above 0, got 0"),
        ({"epochs": math.nan}, "epochs must be a number above 0, got nan"),
        ({"epochs": math.inf}, "epochs must be a number above 0, got inf"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        (
            {"epochs": 0.1},
            "joint64 has no steps on 1,000 images; it takes 1,536 images, 256 to a step, or more",
        ),
    ],
)
def test_lengths_that_come_to_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        of_length(recipe("joint64"), 1000, **settings)
    assert of_length(recipe("joint64"), 1536, epochs=0.1)


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown recipe 'magic'; known: align, align-gpu, align-merging, apart-s"
    ):
        recipe("magic")


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), ()])
def test_a_phase_needs_one_positive_weight_per_size(weights):
    with pytest.raises(ValueError, match="one weight above 0"):
        Phase(epochs=1, img_size=16, sizes=("S", "XL"), weights=weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "aligned"}, "classify or align, got 'aligned'"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"micro_batch": 0}, "micro_batch at least 1"),
        ({"neighbour_weight": -1.0}, "neighbour_weight at least 0"),
        ({"neighbour_weight": 1.0, "micro_batch": 1}, "micro_batch of at least 2"),
        ({"score_weight": -1.0}, "must be at least 0, one of them above, got"),
        ({"label_weight": 0, "score_weight": 0, "vector_weight": 0}, "one of them above, got"),
        ({"resolutions": ((16, 0.0),)}, "sides with shares above 0, got"),
    ],
)
def test_a_phase_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Phase(**{"epochs": 1, "img_size": 16, **settings})


def test_mixing_parameters_cannot_be_negative():
    with pytest.raises(ValueError, match="got -1 and 0"):
        replace(recipe("joint64"), mixup=-1)


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


def test_a_rate_that_stays_cools_down_in_a_straight_line():
    recipe = replace(RECIPE, phases=(Phase(epochs=100, img_size=16),), cooldown=0.25)
    schedule = Schedule(recipe, 80)
    rates = [schedule.learning_rate(step) / recipe.learning_rate for step in range(1000)]
    assert rates[:100] == pytest.approx([(step + 1) / 100 for step in range(100)])
    assert set(rates[100:751]) == {1.0}
    assert rates[750:] == pytest.approx([(1000 - step) / 250 for step in range(750, 1000)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cooldown": 0.0}, "cooldown must be above 0 and at most 1, got 0.0"),
        ({"views": 0}, "views must be at least 1, got 0"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **settings)


def test_schedule_walks_through_the_phases():
    schedule = Schedule(RECIPE, 32)
    assert [schedule.phase(step).img_size for step in (0, 7, 8, 19)] == [8, 8, 16, 16]
    assert schedule.total_steps == 20


def test_a_recipe_without_steps_is_refused():
    with pytest.raises(ValueError, match="recipe test has no steps on 30 images"):
        Schedule(replace(RECIPE, phases=(Phase(epochs=0.01, img_size=16),)), 30)
