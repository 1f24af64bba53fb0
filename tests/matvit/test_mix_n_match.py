from __future__ import annotations

from itertools import pairwise, product
from math import comb

import numpy as np
import pytest
from msgspec.structs import replace

from matvit.config import MatViTConfig
from matvit.cost import count_macs
from matvit.mixes import (
    mix_n_match,
    neighbouring_mixes,
    random_schedule,
    random_submodel,
    trained_sizes,
)

CONFIG = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=5, num_heads=2)

DROP_COUNTS = str.maketrans("", "", "x0123456789")


def test_trained_sizes_are_the_four_of_the_paper():
    assert [str(submodel) for submodel in trained_sizes(CONFIG)] == ["S", "M", "L", "XL"]


def test_mixes_are_exactly_the_non_decreasing_ones():
    found = {submodel.widths for submodel in mix_n_match(CONFIG)}
    every = product((8, 16, 32, 64), repeat=CONFIG.depth)
    assert found == {widths for widths in every if list(widths) == sorted(widths)}
    assert len(mix_n_match(CONFIG)) == comb(CONFIG.depth + 3, 3)


def test_mixes_come_cheapest_first_without_repeats():
    mixes = mix_n_match(CONFIG)
    costs = [count_macs(CONFIG, submodel) for submodel in mixes]
    assert costs == sorted(costs)
    assert len(set(mixes)) == len(mixes)


@pytest.mark.parametrize("limit", [2, 3, 8, 1000])
def test_a_limit_keeps_both_ends_and_spreads_the_rest(limit):
    mixes = mix_n_match(CONFIG, limit)
    costs = [count_macs(CONFIG, submodel) for submodel in mixes]
    assert 2 <= len(mixes) <= limit
    assert [str(mixes[0]), str(mixes[-1])] == ["S", "XL"]
    assert costs == sorted(set(costs))
    even = (costs[-1] - costs[0]) / (limit - 1)
    every = sorted({count_macs(CONFIG, submodel) for submodel in mix_n_match(CONFIG)})
    # Each pick lies within half of the widest gap between costs of its even place.
    assert max(np.diff(costs)) <= even + max(np.diff(every))


def test_a_limit_below_two_is_refused():
    with pytest.raises(ValueError, match=r"at least 2 .*got 1"):
        mix_n_match(CONFIG, 1)


def test_random_submodels_are_m_l_or_mixes_that_widen_or_narrow():
    drawn = [random_submodel(CONFIG, seed) for seed in range(2000)]
    assert drawn == [random_submodel(CONFIG, seed) for seed in range(2000)]
    widths = [list(submodel.widths) for submodel in drawn]
    widening = {tuple(w) for w in widths if w == sorted(w)}
    narrowing = {tuple(w) for w in widths if w == sorted(w, reverse=True)}
    assert all(tuple(w) in widening | narrowing for w in widths)
    assert widening == {submodel.widths for submodel in mix_n_match(CONFIG)}
    assert len(narrowing) == len(widening)
    names = [str(submodel) for submodel in drawn]
    assert 0.28 < (names.count("M") + names.count("L")) / 2000 < 0.4
    sizes = [{"S", "M"}, {"M", "L"}, {"L", "XL"}]
    neighbours = [set(name.translate(DROP_COUNTS).split(",")) in sizes for name in names]
    assert 0.28 < sum(neighbours) / 2000 < 0.6  # some of the other mixes are such, too


def test_neighbouring_mixes_take_one_step_between_adjacent_sizes():
    found = [submodel.widths for submodel in neighbouring_mixes(CONFIG)]
    adjacent = [{8, 16}, {16, 32}, {32, 64}]
    every = product((8, 16, 32, 64), repeat=CONFIG.depth)
    steps = {
        widths
        for widths in every
        if set(widths) in adjacent and sum(one != other for one, other in pairwise(widths)) == 1
    }
    assert set(found) == steps
    assert len(found) == len(steps) == 2 * 3 * (CONFIG.depth - 1)
    costs = [count_macs(CONFIG, submodel) for submodel in neighbouring_mixes(CONFIG)]
    assert costs == sorted(costs)


def test_random_schedules_are_the_preset_or_merge_in_up_to_three_blocks():
    config = replace(CONFIG, img_size=64)
    drawn = [random_schedule(config, seed) for seed in range(2000)]
    assert drawn == [random_schedule(config, seed) for seed in range(2000)]
    names = [str(submodel) for submodel in drawn]
    assert 0.28 < sum(name.endswith("~") for name in names) / 2000 < 0.4
    assert {"S~", "M~", "L~", "XL~"} < set(names)
    assert len({submodel.widths for submodel in drawn}) > 50
    assert {sum(map(bool, each.merged)) for each in drawn} == {1, 2, 3}
    assert {each.merged[-1] for each in drawn} == {0}
    tokens = [sum(each.merged) for each in drawn]
    assert (min(tokens), max(tokens)) == (8, 32 + 16 + 8)


def test_schedules_leave_the_draws_of_sizes_as_they_were():
    """Encoders that were trained are made again from the same seeds."""
    drawn = [str(random_submodel(CONFIG, seed)) for seed in range(8)]
    assert drawn == ["2xM,3xL", "M", "M", "M", "L", "3xL,2xS", "3xL,2xXL", "2xS,3xM"]


@pytest.mark.parametrize("depth", [1, 2])
def test_shallow_models_have_random_submodels_too(depth):
    config = replace(CONFIG, depth=depth)
    drawn = {random_submodel(config, seed).widths for seed in range(300)}
    assert {len(widths) for widths in drawn} == {depth}
    assert len(drawn) == (4 if depth == 1 else 16)
