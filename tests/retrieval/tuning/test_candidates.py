from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from tuned import photos, small_retriever

from matvit.mixes import mix_n_match, trained_sizes
from retrieval import Retriever
from retrieval.tuning.candidates import ask_candidates, best_sums, paper_rule, spread
from retrieval.tuning.sample import draw_sample
from retrieval.tuning.trial import Trial

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


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    return small_retriever(tmp_path_factory.mktemp("candidates"))


def test_the_trained_sizes_and_the_papers_rule_are_always_asked(retriever, tmp_path):
    corpus = photos(tmp_path / "queries", 40, first=5000)
    trial = Trial(retriever, draw_sample(retriever, corpus, size=40).bounding)
    ask_candidates(trial)
    config = retriever.encoder.config
    assert set(trained_sizes(config)) < set(paper_rule(config)) < set(trial.searched)
    assert list(trial.searched) == sorted(trial.searched, key=lambda each: sum(each.widths))


def test_the_papers_rule_widens_in_smallest_steps(retriever):
    assert {str(each) for each in paper_rule(retriever.encoder.config)} == {
        "S", "2xS,1xM", "1xS,2xM", "M", "2xM,1xL", "1xM,2xL", "L", "2xL,1xXL", "1xL,2xXL", "XL",
    }  # fmt: skip


def test_the_table_finds_the_block_that_costs_nothing_to_shrink(tmp_path):
    """Of this encoder only the first block's network does anything, and only its last units."""
    retriever = small_retriever(tmp_path, images=60)
    model = retriever.encoder
    with torch.no_grad():
        for place, block in enumerate(model.backbone.blocks):
            block.mlp.fc2.weight[:, : 64 if place else 8] = 0
            block.mlp.fc1.weight *= 20
            block.mlp.fc2.weight *= 20
    changed = Retriever.__new__(Retriever)
    changed.encoder, changed.index = model, retriever.index
    queries = draw_sample(changed, photos(tmp_path / "queries", 60, first=5000), size=60)
    trial = Trial(changed, queries.bounding)
    ask_candidates(trial)
    asked = {str(each) for each in trial.searched}
    scores = {size: trial.searched[model.submodel(size)] for size in ("M", "L", "XL")}
    assert scores["M"].distortion > 1.5 * scores["L"].distortion > scores["XL"].distortion
    for small, large in (("M", "L"), ("L", "XL")):
        assert f"1x{large},2x{small}" in asked
        assert trial.searched[model.submodel(f"1x{large},2x{small}")].overlap == pytest.approx(
            trial.searched[model.submodel(large)].overlap, abs=0.02
        )


def test_a_spread_keeps_both_ends_and_at_most_so_many(retriever):
    config = retriever.encoder.config
    every = mix_n_match(config)
    kept = spread(config, every, 6)
    assert len(kept) <= 6
    assert (kept[0], kept[-1]) == (every[0], every[-1])
    assert spread(config, every, 1000) == every
