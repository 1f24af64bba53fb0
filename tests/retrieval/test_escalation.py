from __future__ import annotations

import math

import numpy as np
import pytest
from tuned import small_encoder

from matvit.cost import count_macs
from matvit.embedding import embed
from retrieval.escalation import RANKS, Escalation, Operation, confidence_of, escalate

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


def test_it_comes_back_from_json_as_it_was():
    found = escalation()
    assert Escalation.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("change", [{"ladder": 3}, {"extra": 1}, {"reported": {}}])
def test_another_shape_is_refused(change):
    with pytest.raises(ValueError, match="not an escalation"):
        Escalation.from_dict({**escalation().to_dict(), **change})


def test_a_ladder_needs_a_threshold_for_each_step_but_the_last():
    with pytest.raises(ValueError, match="a ladder of 2 submodels needs one threshold"):
        escalation(("S", "XL"), (0.1, 0.2))
