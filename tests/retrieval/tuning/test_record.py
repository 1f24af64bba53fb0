from __future__ import annotations

import json
import re

import msgspec
import numpy as np
import pytest
from tuned import picture, small_encoder, small_retriever

from matvit.extraction import extract
from retrieval import ParetoFrontier, Tuning, read_tuning
from retrieval.tuning.record import TUNING, Escalation, Operation

OPERATION = Operation(level=0.5, thresholds=(0.1,), macs_fraction=0.5, lost=0.0)


def escalation(ladder=("S", "1xS,2xXL", "XL"), thresholds=(0.02, 0.02)):
    return Escalation(
        ladder=ladder, thresholds=thresholds, uses_labels=False, max_loss=0.1,
        certainty=0.9, calibrated_on=10, reported=OPERATION,
    )  # fmt: skip


def untimed(*_, **__):
    raise AssertionError("nobody asked for milliseconds")


def test_a_budget_in_gmacs_answers_with_what_choose_picks(indexed, stored, monkeypatch):
    monkeypatch.setattr("retrieval.speed.measured_ms", untimed)
    full = stored.frontier.full.macs / 1e9
    for share in (0.6, 0.8, 1.0):
        hits = indexed.search(picture(), stored.choose(max_gmacs=share * full))
        assert hits.macs <= share * full * 1e9
        fitting = [each for each in stored.selection if each.macs <= share * full * 1e9]
        most = max(each.overlap_at_k for each in fitting)
        assert stored.selection.point_of(hits.submodel).overlap_at_k == most
        assert hits.hits == indexed.search(picture(), hits.submodel).hits
        assert hits.steps == ()


def test_a_recall_answers_with_the_cheapest_that_keeps_it(stored):
    point = stored.selection.cheapest(0.9)
    assert str(stored.choose(min_recall=0.9)) == point.submodel


def test_milliseconds_are_those_of_this_machine(stored, monkeypatch):
    monkeypatch.setattr(
        "retrieval.speed.measured_ms",
        lambda encoder, submodels, **_: {
            each: sum(encoder.submodel(each).widths) / 10 for each in submodels
        },
    )
    chosen = stored.choose(max_ms=9.6)
    assert sum(chosen.widths) <= 96
    with pytest.raises(
        ValueError, match="no submodel fits in 1 ms; the nearest, S.*, needs 2.4 ms"
    ):
        stored.choose(max_ms=1)
    timed = stored.by_ms()
    assert timed.metric == "overlap@10"
    assert [point.latency_ms_p50 for point in timed][:1] == [2.4]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "a budget is needed: give max_gmacs, max_ms or min_recall"),
        ({"max_gmacs": -1.0}, "max_gmacs must be a number above 0, got -1.0"),
        ({"max_gmacs": 1e-9}, "the nearest, S~.*, needs"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(stored, wish, message):
    with pytest.raises(ValueError, match=message):
        stored.choose(**wish)


def test_an_index_that_was_never_tuned_says_so(tmp_path):
    retriever = small_retriever(tmp_path, images=30)
    assert read_tuning(retriever.index, retriever.encoder) is None
    with pytest.raises(ValueError, match="never tuned with encoder small; run `matvit tune"):
        Tuning.of(retriever.index, retriever.encoder)


def test_choosing_needs_the_whole_encoder(indexed, stored):
    for read in (Tuning.of, read_tuning):
        with pytest.raises(ValueError, match="only the extracted submodel S; choosing among"):
            read(indexed.index, extract(small_encoder(), "S"))


def test_calibrated_scores_are_on_the_full_encoders_scale(indexed, stored):
    plain = indexed.search(picture(), "S")
    on_scale = stored.on_full_scale(plain)
    scale = stored.scales["S"]
    expected = np.interp([hit.score for hit in plain], scale.submodel, scale.full)
    inside = [scale.submodel[0] <= hit.score <= scale.submodel[-1] for hit in plain]
    found = np.array([hit.score for hit in on_scale])
    assert [hit.id for hit in plain] == [hit.id for hit in on_scale]
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-12)
    full = indexed.search(picture(), "XL")
    assert stored.on_full_scale(full) == full


def test_scores_of_a_submodel_that_was_not_measured_cannot_be_calibrated(indexed, stored):
    with pytest.raises(ValueError, match="scores of 1x7,2x9 were not measured when"):
        stored.on_full_scale(indexed.search(picture(), "1x7,2x9"))


def test_what_is_stored_is_what_is_read(indexed, stored):
    assert Tuning.of(indexed.index, indexed.encoder) == stored
    document = json.loads((indexed.index.path / TUNING).read_text())
    assert sorted(document) == ["content", "format_version", "sha256"]
    assert document["content"] == json.loads(json.dumps(stored.to_dict()))
    assert list(document["content"]) == [
        "altered", "cutoff", "escalation", "frontier", "measured", "scales", "selecting",
        "selection", "strategy", "target", "tuned_for",
    ]  # fmt: skip
    assert ParetoFrontier.from_dict(document["content"]["selection"]) == stored.selection


def test_escalation_comes_back_from_json_as_it_was():
    found = escalation()
    assert msgspec.convert(json.loads(msgspec.json.encode(found)), Escalation) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ladder": 3}, "Expected `array`, got `int` - at `$.ladder`"),
        ({"extra": 1}, "unknown field `extra`"),
        ({"reported": {}}, "missing required field `level` - at `$.reported`"),
        ({"thresholds": []}, "a ladder of 3 submodels needs one threshold for each"),
    ],
)
def test_another_shape_is_refused(change, message):
    values = msgspec.to_builtins(escalation())
    with pytest.raises(ValueError, match=re.escape(message)):
        msgspec.convert({**values, **change}, Escalation)


def test_a_ladder_needs_a_threshold_for_each_step_but_the_last():
    with pytest.raises(ValueError, match="a ladder of 2 submodels needs one threshold"):
        escalation(("S", "XL"), (0.1, 0.2))
