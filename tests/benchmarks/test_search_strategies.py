from __future__ import annotations

import pytest
from tuned import photos, small_retriever

from benchmarks.search_strategies import STRATEGIES, monotone
from matvit.config import MatViTConfig
from matvit.cost import count_macs
from matvit.mixes import mix_n_match, trained_sizes
from retrieval.tuning.sample import draw_sample
from retrieval.tuning.trial import Trial


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    return small_retriever(tmp_path_factory.mktemp("strategies"))


@pytest.fixture(scope="module")
def queries(retriever, tmp_path_factory):
    corpus = photos(tmp_path_factory.mktemp("queries"), 80, first=5000)
    return draw_sample(retriever, corpus, size=80).bounding


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_asks_with_the_trained_sizes(retriever, queries, name):
    trial = Trial(retriever, queries)
    STRATEGIES[name](trial)
    assert set(trained_sizes(trial.config)) <= set(trial.searched)
    assert list(trial.searched) == sorted(
        trial.searched, key=lambda each: count_macs(trial.config, each)
    )


def test_all_monotone_submodels_are_906_for_12_blocks():
    config = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=12, num_heads=2)
    found = monotone(config)
    assert len(found) == len(set(found)) == 906
    assert set(mix_n_match(config)) < set(found)
