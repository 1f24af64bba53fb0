from __future__ import annotations

import numpy as np
import pytest
from tuned import photos, small_retriever

from matvit.embedding import embed
from matvit.extraction import extract
from retrieval import Retriever
from retrieval.tuning.journal import Score
from retrieval.tuning.sample import draw_sample
from retrieval.tuning.trial import Trial


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    return small_retriever(tmp_path_factory.mktemp("trial"))


@pytest.fixture(scope="module")
def queries(retriever, tmp_path_factory):
    corpus = photos(tmp_path_factory.mktemp("queries"), 80, first=5000)
    return draw_sample(retriever, corpus, size=80).bounding


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
    shifted = trial.full.copy()
    shifted[0] += 0.5 * apart
    along = trial.full.copy()
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
