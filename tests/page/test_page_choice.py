from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from points import point

from app.page.choice import (
    Unit,
    blocks_of,
    budget_range,
    cost_of,
    from_blocks,
    measured,
    spent,
    units,
    within,
)
from matvit.config import MatViTConfig
from matvit.cost import count_macs, count_params
from matvit.submodel import Granularity, Submodel
from retrieval import ParetoFrontier

CONFIG = MatViTConfig(img_size=64, patch_size=8, embed_dim=256, depth=6, num_heads=4)


FRONTIER = ParetoFrontier(
    [
        point("S", 0.14392, 0.90, 7.04),
        point("M", 0.1694, 0.95, 7.6),
        point("L", 0.221, 0.93, 8.6),
        point("XL", 0.32283, 1.0, 10.61),
    ]
)


def parse(text: str) -> Submodel:
    return Submodel.parse(text, depth=6, hidden_dim=CONFIG.hidden_dim)


def test_the_cost_of_a_submodel_is_counted_and_its_widths_are_shares():
    mixed = parse("2xS,1xM,3xXL")
    cost = cost_of(CONFIG, mixed)
    assert cost.macs == count_macs(CONFIG, mixed)
    assert cost.params == count_params(CONFIG, mixed)
    assert cost.fraction == cost.macs / count_macs(CONFIG, parse("XL"))
    assert cost.widths == (0.125, 0.125, 0.25, 1, 1, 1)
    assert cost.submodel == "2xS,1xM,3xXL"


@given(st.lists(st.sampled_from(Granularity), min_size=6, max_size=6))
def test_blocks_make_a_submodel_and_a_submodel_blocks(sizes):
    assert blocks_of(from_blocks(CONFIG, sizes)) == sizes


def test_a_width_between_two_sizes_is_shown_as_the_smaller():
    assert blocks_of(parse("3x200,2x600,1x5")) == ["S", "S", "S", "L", "L", "S"]


@pytest.mark.parametrize(
    ("unit", "limit", "chosen"),
    [
        (Unit.GMACS, 0.144, "S"),
        (Unit.GMACS, 0.2, "M"),
        (Unit.GMACS, 0.3, "M"),  # L costs more than M and finds less
        (Unit.GMACS, 0.323, "XL"),
        (Unit.MS, 7.5, "S"),
        (Unit.MS, 10.7, "XL"),
    ],
)
def test_a_budget_buys_the_best_within_it(unit, limit, chosen):
    assert within(FRONTIER, unit, limit).submodel == chosen


def test_a_budget_that_nothing_meets_names_the_nearest():
    with pytest.raises(ValueError, match="the nearest, S, needs"):
        within(FRONTIER, Unit.GMACS, 0.1)


@pytest.mark.parametrize("unit", list(Unit))
def test_both_ends_of_the_slider_buy_something(unit):
    limits = budget_range(FRONTIER, unit)
    assert within(FRONTIER, unit, limits.low).submodel == "S"
    assert within(FRONTIER, unit, limits.high).submodel == "XL"
    assert limits.low - limits.step < spent(FRONTIER.points[0], unit) <= limits.low


@given(
    st.lists(st.tuples(st.floats(1e-3, 500), st.floats(0, 1)), min_size=1, max_size=8),
)
def test_every_budget_on_the_slider_buys_something(pairs):
    frontier = ParetoFrontier(
        [point(f"1x{place + 1}", gmacs, recall) for place, (gmacs, recall) in enumerate(pairs)]
    )
    limits = budget_range(frontier, Unit.GMACS)
    assert limits.low < limits.high
    for value in (limits.low, limits.high, limits.clip(0), limits.clip(1e9)):
        assert limits.low <= value <= limits.high
        within(frontier, Unit.GMACS, value)
    for each in frontier.pareto:
        clipped = limits.clip(spent(each, Unit.GMACS))
        assert frontier.recall(within(frontier, Unit.GMACS, clipped)) >= frontier.recall(each)


def test_milliseconds_are_offered_only_where_they_were_measured():
    assert units(FRONTIER) == [Unit.GMACS, Unit.MS]
    assert units(ParetoFrontier([point("S", 0.1, 0.9)])) == [Unit.GMACS]


def test_only_what_was_measured_is_found():
    found = measured(FRONTIER, "M")
    assert found is not None
    assert found.submodel == "M"
    assert measured(FRONTIER, "2xS,4xM") is None
    assert measured(None, "M") is None
