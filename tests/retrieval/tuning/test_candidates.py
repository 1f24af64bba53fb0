from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from tuned import photos, small_retriever

from matvit.config import MatViTConfig
from matvit.cost import count_macs
from matvit.mixes import mix_n_match, trained_sizes
from matvit.submodel import Submodel
from retrieval import Retriever
from retrieval.tuning.candidates import (
    ask_candidates,
    ask_widths,
    best_schedules,
    best_sums,
    paper_rule,
    spread,
)
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
    assert list(trial.searched) == sorted(trial.searched, key=lambda each: count_macs(config, each))


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


PATCHES = MatViTConfig(img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2)


@pytest.mark.parametrize("seed", range(5))
def test_for_every_amount_of_compute_the_least_distortion_of_both_axes_is_found(seed):
    rng = np.random.default_rng(seed)
    widths = [{8: float(rng.random()), 32: 0.0} for _ in range(3)]
    merging = [{0: 0.0, 3: float(rng.random()), 8: float(rng.random())} for _ in range(3)]
    every = []
    for keeps, merges in product(product((8, 32), repeat=3), product((0, 3, 8), repeat=3)):
        if all(count <= (16 - sum(merges[:b])) // 2 for b, count in enumerate(merges)):
            submodel = Submodel(keeps, 64, merged=merges, patches=16)
            lost = sum(widths[b][keeps[b]] + merging[b][merges[b]] for b in range(3))
            every.append((count_macs(PATCHES, submodel), lost))
    best = {
        macs: lost
        for macs, lost in every
        if not any(m <= macs and d <= lost and (m, d) != (macs, lost) for m, d in every)
    }
    found = best_schedules(PATCHES, widths, merging)
    assert [count_macs(PATCHES, each) for each in found] == sorted(best)
    for each in found:
        merged = each.merged or (0, 0, 0)
        lost = sum(widths[b][each.widths[b]] + merging[b][merged[b]] for b in range(3))
        assert lost == pytest.approx(best[count_macs(PATCHES, each)])


def test_24_blocks_of_both_axes_take_no_enumeration():
    config = replace(PATCHES, depth=24, img_size=64)
    rng = np.random.default_rng(0)
    widths = [{8: float(rng.random()), 32: 0.0} for _ in range(24)]
    merging = [{0: 0.0, 8: float(rng.random()), 32: float(rng.random())} for _ in range(24)]
    found = best_schedules(config, widths, merging)
    assert set(found[-1].widths) == {32}
    assert not found[-1].merged
    assert sum(found[0].merged) > 32


def test_both_axes_are_asked_and_the_presets_among_them(retriever, tmp_path):
    corpus = photos(tmp_path / "queries", 40, first=5000)
    trial = Trial(retriever, draw_sample(retriever, corpus, size=40).bounding)
    ask_widths(trial)
    assert not any(each.merged for each in trial.searched)
    ask_candidates(trial)
    merging = {str(each) for each in trial.searched if each.merged}
    assert {"S~", "M~", "L~", "XL~"} < merging
    assert not any(each.merged[-1] for each in trial.searched if each.merged)  # it would not matter


def test_the_block_is_found_where_merging_costs_nothing(tmp_path):
    """Of this encoder the last two blocks do not look at patches any more."""
    retriever = small_retriever(tmp_path, images=60)
    model = retriever.encoder
    with torch.no_grad():
        for block in model.backbone.blocks[1:]:
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
    changed = Retriever.__new__(Retriever)
    changed.encoder, changed.index = model, retriever.index
    queries = draw_sample(changed, photos(tmp_path / "queries", 60, first=5000), size=60)
    trial = Trial(changed, queries.bounding)
    ask_candidates(trial)
    merging = [each for each in trial.searched if each.merged and set(each.widths) == {64}]
    assert merging
    full = trial.searched[model.submodel()].overlap
    assert all(trial.searched[each].overlap == pytest.approx(full, abs=0.02) for each in merging)
