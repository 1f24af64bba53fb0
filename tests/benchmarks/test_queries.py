from __future__ import annotations

import numpy as np

from benchmarks.queries import concatenate
from retrieval.ground_truth import Wanted
from retrieval.tuning.sample import Queries


def made_up(own, seed):
    rng = np.random.default_rng(seed)
    count = len(own)
    return Queries(
        pixels=rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8),
        wanted=Wanted(np.array(own), rng.integers(0, 3, count), rng.integers(0, 9, count)),
    )


def test_parts_put_together_keep_every_query_and_its_copies():
    narrow, wide = made_up([[7], [-1]], seed=0), made_up([[3, 4, 5]], seed=1)
    both = concatenate([narrow, wide])
    np.testing.assert_array_equal(both.pixels, np.concatenate([narrow.pixels, wide.pixels]))
    assert both.wanted.own.tolist() == [[7, -1, -1], [-1, -1, -1], [3, 4, 5]]
    assert both.wanted.labels.tolist() == [*narrow.wanted.labels, *wide.wanted.labels]
    assert both.wanted.total.tolist() == [*narrow.wanted.total, *wide.wanted.total]
