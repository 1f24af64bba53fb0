from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tuned import photos, picture, small_encoder

from indexing import ImageIndex, IndexMismatchError
from matvit.cost import count_macs
from matvit.embedding import embed
from matvit.extraction import extract
from retrieval import AutoRetriever, Retriever
from retrieval.tuning.auto import RANKS, confidence_of, escalate
from retrieval.tuning.record import Escalation, Operation

OPERATION = Operation(level=0.5, thresholds=(0.1,), macs_fraction=0.5, lost=0.0)


def escalation(ladder=("S", "1xS,2xXL", "XL"), thresholds=(0.02, 0.02), *, uses_labels=False):
    return Escalation(
        ladder=ladder, thresholds=thresholds, uses_labels=uses_labels, max_loss=0.1,
        certainty=0.9, calibrated_on=10, reported=OPERATION,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return small_encoder()


@pytest.fixture(scope="module")
def database(model):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    return embed(model, pixels)


def exact(database):
    def search(vectors):
        scores = vectors @ database.T
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :RANKS]
        return ids, np.take_along_axis(scores, ids, axis=1)

    return search


def queries(count, seed=2):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_confidence_without_labels_is_the_margin():
    scores = np.array([[0.9, 0.7, 0.1], [0.5, 0.5, 0.4]])
    np.testing.assert_allclose(confidence_of(scores), [0.2, 0.0])


def test_confidence_with_labels_adds_the_share_of_hits_that_agree_with_the_first():
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]] * 3)
    labels = np.array([[2, 2, 1, 2, 0], [1, 1, 1, 1, 1], [-1, -1, -1, -1, -1]])
    np.testing.assert_allclose(confidence_of(scores, labels), [0.1 + 2 / 4, 0.1 + 1, 0.1])


def test_ranks_that_hold_nothing_do_not_count():
    scores = np.array([[0.9, 0.8, -np.inf], [0.9, -np.inf, -np.inf]])
    labels = np.array([[1, 1, -1], [1, -1, -1]])
    np.testing.assert_allclose(confidence_of(scores, labels)[0], 0.1 + 1)
    assert confidence_of(scores, labels)[1] > 1e300
    assert confidence_of(scores[:, :1]).tolist() == [math.inf, math.inf]


def test_each_query_stops_at_the_first_submodel_that_is_sure(model, database):
    found = escalation(thresholds=(0.004, 0.004))
    images = queries(30)
    few = [images[start : start + 3] for start in range(0, 30, 3)]  # float32 on every machine
    answers = [
        answer for part in few for answer in escalate(found, model, part, exact(database), None)
    ]
    stops = []
    for place, answer in enumerate(answers):
        for rung, name in enumerate(found.ladder):
            vector = embed(model, images[place : place + 1], name)
            scores = np.sort(vector @ database.T)[0, ::-1]
            margin = scores[0] - scores[1]
            assert answer.steps[rung].submodel == name
            assert answer.steps[rung].confidence == pytest.approx(margin, abs=1e-5)
            if rung == 2 or margin >= 0.004:
                break
        assert len(answer.steps) == rung + 1
        np.testing.assert_allclose(answer.scores[0], scores[0], atol=1e-5)
        assert answer.ids[0] == np.argmax(vector @ database.T)
        stops.append(rung)
    assert set(stops) == {0, 1, 2}  # the thresholds above let some queries stop at each


def test_one_query_alone_gets_the_very_answer_of_the_submodel_it_ends_with(model, database):
    found = escalation(thresholds=(math.inf, math.inf))
    for place in range(5):
        image = queries(5)[place : place + 1]
        (answer,) = escalate(found, model, image, exact(database), None)
        ids, scores = exact(database)(embed(model, image))
        np.testing.assert_array_equal(answer.ids, ids[0])
        np.testing.assert_array_equal(answer.scores, scores[0])


def test_steps_add_up_to_less_than_running_each_submodel_on_its_own(model, database):
    (answer,) = escalate(
        escalation(thresholds=(math.inf, math.inf)), model, queries(1), exact(database), None
    )
    apart = [count_macs(model.config, model.submodel(step.submodel)) for step in answer.steps]
    assert answer.steps[0].macs == apart[0]
    assert all(step.macs < alone for step, alone in zip(answer.steps[1:], apart[1:], strict=True))


def test_labels_decide_only_if_the_escalation_uses_them(model, database):
    labels = np.arange(40) % 2
    for uses_labels in (False, True):
        found = escalation(("S", "XL"), (-1.0,), uses_labels=uses_labels)
        answers = escalate(found, model, queries(4), exact(database), lambda ids: labels[ids])
        for answer in answers:
            margin = float(answer.scores[0] - answer.scores[1])
            same = labels[answer.ids[1:RANKS]] == labels[answer.ids[0]]
            expected = margin + (same.mean() if uses_labels else 0)
            assert answer.steps[-1].confidence == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def auto(indexed, stored):
    return AutoRetriever(indexed, stored)


def test_auto_climbs_and_tells_what_it_took(indexed, stored, auto):
    ladder = stored.escalation.ladder
    for hits in auto.search_batch([picture(seed) for seed in range(6)], k=3):
        assert tuple(step.submodel for step in hits.steps) == ladder[: len(hits.steps)]
        assert hits.submodel == hits.steps[-1].submodel
        assert hits.macs == sum(step.macs for step in hits.steps)
        assert len(hits) == 3
        values = hits.to_dict()
        assert [step["submodel"] for step in values["steps"]] == list(ladder[: len(hits.steps)])
        assert stored.on_full_scale(hits).steps == hits.steps
    assert "steps" not in indexed.search(picture(), "S").to_dict()


def test_auto_of_one_query_is_the_answer_of_the_submodel_it_ended_with(indexed, auto):
    for seed in range(5):
        hits = auto.search(picture(seed), k=4)
        assert hits.hits == indexed.search(picture(seed), hits.submodel, k=4).hits


def test_auto_of_no_queries_is_no_answers(auto):
    assert auto.search_batch([]) == []


def test_auto_refuses_what_every_search_refuses(auto):
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        auto.search(picture(), k=0)
    with pytest.raises(FileNotFoundError, match="no such image"):
        auto.search("nowhere.png")


def test_auto_needs_the_whole_encoder(indexed, stored):
    small = Retriever(extract(small_encoder(), "S"), indexed.index)
    with pytest.raises(ValueError, match="only the extracted submodel S; choosing among"):
        AutoRetriever(small, stored)


def test_auto_needs_a_tuning_of_its_own_encoder(stored, tmp_path):
    other = small_encoder(seed=1)
    index = ImageIndex.build(other, photos(tmp_path / "photos", 12), tmp_path / "index")
    with pytest.raises(IndexMismatchError, match="was tuned with another encoder than small"):
        AutoRetriever(Retriever(other, index), stored)


def test_many_queries_at_once_are_answered_in_parts(auto, monkeypatch):
    expected = [auto.search(picture(seed)) for seed in range(7)]
    monkeypatch.setattr("retrieval.tuning.auto._TOGETHER", 3)
    found = auto.search_batch([picture(seed) for seed in range(7)])
    assert [hits.hits for hits in found] == [hits.hits for hits in expected]


def test_no_escalation_worth_making_is_an_error_with_advice(indexed, stored):
    with pytest.raises(ValueError, match="no per-query choice worth making; name a submodel"):
        AutoRetriever(indexed, replace(stored, escalation=None))
