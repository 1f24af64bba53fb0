from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from retrieval.tuning.distortion import best_sums

WIDTHS = (8, 16, 32, 64)


def random_table(depth, seed):
    rng = np.random.default_rng(seed)
    return [
        dict(zip(WIDTHS, sorted(rng.random(4), reverse=True), strict=True)) for _ in range(depth)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keep", [1, 3])
def test_for_every_total_width_the_least_distortion_of_all_mixes_is_found(seed, keep):
    table = random_table(5, seed)
    every: dict[int, list[float]] = {}
    for widths in product(WIDTHS, repeat=5):
        cost = sum(table[block][width] for block, width in enumerate(widths))
        every.setdefault(sum(widths), []).append(cost)
    found = best_sums(table, 64, keep)
    assert list(found) == sorted(every)
    for total, submodels in found.items():
        costs = [sum(table[b][w] for b, w in enumerate(each.widths)) for each in submodels]
        assert len(set(submodels)) == len(submodels)
        assert {sum(each.widths) for each in submodels} == {total}
        np.testing.assert_allclose(costs, sorted(every[total])[:keep])


def test_24_blocks_take_no_enumeration():
    found = best_sums(random_table(24, 0), 64, keep=2)
    assert next(iter(found)) == 24 * 8
    assert list(found)[-1] == 24 * 64


def test_a_block_without_widths_is_refused():
    with pytest.raises(ValueError, match="widths for every block"):
        best_sums([{8: 0.1}, {}], 64)
    with pytest.raises(ValueError, match="keep of at least 1, got 0"):
        best_sums([{8: 0.1}], 64, keep=0)
