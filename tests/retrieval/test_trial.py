from __future__ import annotations

import numpy as np
import pytest
import torch
from tuned import photos, small_retriever

from matvit.embedding import embed
from matvit.extraction import extract
from matvit.mixes import mix_n_match, trained_sizes
from retrieval import Retriever
from retrieval.tuning.sample import draw_sample
from retrieval.tuning.strategies import STRATEGIES, monotone, spread
from retrieval.tuning.trial import Score, Trial


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    return small_retriever(tmp_path_factory.mktemp("trial"))


@pytest.fixture(scope="module")
def queries(retriever, tmp_path_factory):
    corpus = photos(tmp_path_factory.mktemp("queries"), 80, first=5000)
    return draw_sample(retriever, corpus, size=80).calibrating


def test_scores_are_those_of_a_search_by_hand(retriever, queries):
    submodel = retriever.encoder.submodel("1xS,2xM")
    (score,) = Trial(retriever, queries, k=5).ask([submodel])
    database = retriever.index.embeddings[:].astype(np.float64)
    full, small = (
        embed(retriever.encoder, queries.pixels, each).astype(np.float64)
        for each in (None, submodel)
    )
    best, found = (np.argsort(-(vectors @ database.T), axis=1) for vectors in (full, small))
    shared = [len(set(a[:5]) & set(b[:5])) / 5 for a, b in zip(best, found, strict=True)]
    assert score.overlap == pytest.approx(np.mean(shared), abs=0.02)
    right = retriever.index.labels[found[:, 0]] == queries.wanted.labels
    assert score.hit_rate == pytest.approx(right.mean(), abs=0.03)
    moved = []
    for query, row in enumerate(best[:, :32]):
        near = database[row] - database[row].mean(axis=0)
        moved.append(near @ (small[query] - full[query]))
    assert score.distortion == pytest.approx(np.mean(np.square(moved)), rel=0.05)


def test_the_full_size_keeps_everything(retriever, queries):
    (score,) = Trial(retriever, queries).ask([retriever.encoder.submodel()])
    assert score.overlap == 1
    assert score.distortion < 1e-6


def test_a_shift_that_moves_all_scores_alike_is_no_distortion(retriever, queries, monkeypatch):
    monkeypatch.setattr("retrieval.tuning.trial._NEIGHBOURS", 8)  # fewer than dimensions
    trial = Trial(retriever, queries, k=5)
    near = trial._neighbours
    apart = np.linalg.svd(near[0])[2][-1]  # at a right angle to all differences of neighbours
    shifted = trial._full.copy()
    shifted[0] += 0.5 * apart
    along = trial._full.copy()
    along[0] += 0.5 * near[0, 0] / np.linalg.norm(near[0, 0])
    assert trial._distortion(along) > 1000 * trial._distortion(shifted)


def test_nothing_is_measured_twice(retriever, queries, monkeypatch):
    from retrieval.tuning import trial as module

    embedded = []
    real = module.embed_each

    def watching(model, pixels, submodels):
        embedded.append(list(submodels))
        return real(model, pixels, submodels)

    monkeypatch.setattr(module, "embed_each", watching)
    small, middle = (retriever.encoder.submodel(name) for name in ("S", "M"))
    ticks = []
    trial = Trial(
        retriever, queries, known={small: Score(distortion=1.0)},
        on_progress=lambda: ticks.append(1),
    )  # fmt: skip
    assert trial.distortions([small]) == [1.0]
    trial.ask([small, middle])
    trial.ask([middle])
    assert embedded == [[], [small, middle], []]
    assert len(ticks) == 2
    assert list(trial.searched) == [small, middle]


def test_an_extracted_submodel_cannot_be_tuned(retriever, queries):
    small = Retriever(extract(retriever.encoder, "S"), retriever.index)
    with pytest.raises(ValueError, match="only the extracted submodel S; choosing"):
        Trial(small, queries)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_asks_with_the_trained_sizes(retriever, queries, name):
    trial = Trial(retriever, queries)
    STRATEGIES[name].search(trial)
    assert set(trained_sizes(trial.config)) <= set(trial.searched)
    assert list(trial.searched) == sorted(trial.searched, key=lambda each: sum(each.widths))


def test_the_papers_rule_widens_in_smallest_steps(retriever, queries):
    trial = Trial(retriever, queries)
    STRATEGIES["paper"].search(trial)
    names = {str(each) for each in trial.searched}
    assert names == {
        "S", "2xS,1xM", "1xS,2xM", "M", "2xM,1xL", "1xM,2xL", "L", "2xL,1xXL", "1xL,2xXL", "XL",
    }  # fmt: skip


def test_all_monotone_submodels_are_906_for_12_blocks():
    from matvit.config import MatViTConfig

    config = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=12, num_heads=2)
    found = monotone(config)
    assert len(found) == len(set(found)) == 906
    assert set(mix_n_match(config)) < set(found)


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
    trial = Trial(changed, queries.calibrating)
    STRATEGIES["distortion"].search(trial)
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
    every = monotone(config)
    kept = spread(config, every, 6)
    assert len(kept) <= 6
    assert (kept[0], kept[-1]) == (every[0], every[-1])
    assert spread(config, every, 1000) == every
