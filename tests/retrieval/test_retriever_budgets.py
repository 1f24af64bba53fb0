from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tuned import small_encoder, small_retriever

from matvit.extraction import extract
from retrieval import Retriever
from retrieval.escalation import Escalation, Operation
from retrieval.tuning.record import FILE, store_tuning


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    from dataclasses import replace

    retriever = small_retriever(tmp_path_factory.mktemp("budgets"))
    made = retriever.tune(size=80, latency=False)
    always = Escalation(
        ladder=("S", "1xS,2xXL", "XL"), thresholds=(0.9, 1e9), uses_labels=True, max_loss=0.1,
        certainty=0.9, calibrated_on=40,
        reported=Operation(level=1.0, thresholds=(0.9, 1e9), macs_fraction=1.2, lost=0.0),
    )  # fmt: skip
    store_tuning(retriever.index.path, replace(made, escalation=always))
    return retriever


def picture(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_budget_in_gmacs_answers_with_what_choose_picks(tuned):
    full = tuned.tuning.frontier.full.macs / 1e9
    for share in (0.6, 0.8, 1.0):
        hits = tuned.search(picture(), max_gmacs=share * full)
        assert hits.macs <= share * full * 1e9
        assert hits.submodel == str(tuned.choose(max_gmacs=share * full))
        fitting = [each for each in tuned.tuning.selection if each.macs <= share * full * 1e9]
        most = max(each.overlap_at_k for each in fitting)
        assert tuned.tuning.selection.point_of(hits.submodel).overlap_at_k == most
        assert hits.hits == tuned.search(picture(), hits.submodel).hits
        assert hits.steps == ()


def test_a_recall_answers_with_the_cheapest_that_keeps_it(tuned):
    point = tuned.tuning.selection.cheapest(0.9)
    assert tuned.search(picture(), min_recall=0.9).submodel == point.submodel


def test_milliseconds_are_those_of_this_machine(tuned, monkeypatch):
    monkeypatch.setattr(
        "retrieval.speed.measured_ms",
        lambda encoder, submodels: {
            each: sum(encoder.submodel(each).widths) / 10 for each in submodels
        },
    )
    chosen = tuned.choose(max_ms=9.6)
    assert sum(chosen.widths) <= 96
    with pytest.raises(ValueError, match="no submodel fits in 1 ms; the nearest, S, needs 2.4 ms"):
        tuned.choose(max_ms=1)


def test_auto_climbs_and_tells_what_it_took(tuned):
    for hits in tuned.search_batch([picture(seed) for seed in range(6)], "auto", k=3):
        ladder = tuned.tuning.escalation.ladder
        assert tuple(step.submodel for step in hits.steps) == ladder[: len(hits.steps)]
        assert hits.submodel == hits.steps[-1].submodel
        assert hits.macs == sum(step.macs for step in hits.steps)
        assert len(hits) == 3
        values = hits.to_dict()
        assert [step["submodel"] for step in values["steps"]] == list(ladder[: len(hits.steps)])
    assert "steps" not in tuned.search(picture(), "S").to_dict()


def test_auto_of_one_query_is_the_answer_of_the_submodel_it_ended_with(tuned):
    for seed in range(5):
        hits = tuned.search(picture(seed), "auto", k=4)
        assert hits.hits == tuned.search(picture(seed), hits.submodel, k=4).hits


def test_auto_of_no_queries_is_no_answers(tuned):
    assert tuned.search_batch([], "auto") == []


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"submodel": "S", "max_gmacs": 1.0}, "give a submodel or a budget, not both"),
        ({"max_gmacs": -1.0}, "max_gmacs must be a number above 0, got -1.0"),
        ({"max_gmacs": 1e-9}, "the nearest, S, needs"),
        ({"submodel": "auto", "k": 0}, "k must be at least 1, got 0"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(tuned, wish, message):
    with pytest.raises(ValueError, match=message):
        tuned.search(picture(), **wish)


def test_an_index_that_was_never_tuned_says_so(tmp_path):
    retriever = small_retriever(tmp_path, images=30)
    assert retriever.tuning is None
    assert retriever.tuning_note is None
    for wish in ({"submodel": "auto"}, {"max_gmacs": 1.0}):
        with pytest.raises(ValueError, match="never tuned with encoder small; run `matvit tune"):
            retriever.search(picture(), **wish)


def test_auto_needs_the_whole_encoder(tuned):
    small = Retriever(extract(small_encoder(), "S"), tuned.index)
    for wish in ({"submodel": "auto"}, {"max_gmacs": 5.0}, {"calibrated": True}):
        with pytest.raises(ValueError, match="only the extracted submodel S; choosing among"):
            small.search(picture(), **wish)


def test_many_queries_at_once_are_answered_in_parts(tuned, monkeypatch):
    expected = [tuned.search(picture(seed), "auto") for seed in range(7)]
    monkeypatch.setattr("retrieval.retriever._TOGETHER", 3)
    found = tuned.search_batch([picture(seed) for seed in range(7)], "auto")
    assert [hits.hits for hits in found] == [hits.hits for hits in expected]


def test_no_escalation_worth_making_is_an_error_with_advice(tuned):
    from dataclasses import replace

    before = tuned.tuning
    try:
        store_tuning(tuned.index.path, replace(before, escalation=None))
        with pytest.raises(ValueError, match="no per-query choice worth making; name a submodel"):
            tuned.search(picture(), "auto")
    finally:
        store_tuning(tuned.index.path, before)
    assert (tuned.index.path / FILE).exists()


def test_calibrated_scores_are_on_the_full_encoders_scale(tuned):
    plain, on_scale = (tuned.search(picture(), "S", calibrated=flag) for flag in (False, True))
    scale = tuned.tuning.scales["S"]
    expected = np.interp([hit.score for hit in plain], scale.submodel, scale.full)
    inside = [scale.submodel[0] <= hit.score <= scale.submodel[-1] for hit in plain]
    found = np.array([hit.score for hit in on_scale])
    assert [hit.id for hit in plain] == [hit.id for hit in on_scale]
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-12)
    full = tuned.search(picture(), "XL")
    assert tuned.search(picture(), "XL", calibrated=True).hits == full.hits
    for hits in tuned.search_batch([picture(seed) for seed in range(4)], "auto", calibrated=True):
        assert hits.hits


def test_scores_of_a_submodel_that_was_not_measured_cannot_be_calibrated(tuned):
    with pytest.raises(ValueError, match="scores of 1x7,2x9 were not measured when"):
        tuned.search(picture(), "1x7,2x9", calibrated=True)
