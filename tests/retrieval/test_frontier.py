"""The frontier against the definition of dominance, and its choices against brute force.

Mutants these tests must catch: `<` for `<=` in a budget; the first point kept whatever it finds;
the dearer of equally good points kept; one of two equal points lost; points compared by overlap
although labels are known.
"""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.frontier import Conditions, OperatingPoint, ParetoFrontier


def point(submodel="S", macs=100, recall=0.9, **changes):
    """A point measured with labels; `recall` is its retained hit rate."""
    values = {
        "macs_fraction": macs / 1000,
        "params": 10 * macs,
        "queries": 500,
        "k": 10,
        "hit_rate_at_1": 0.8 * recall,
        "recall_at_k": 0.5,
        "map_at_r": 0.4,
        "overlap_at_k": 0.7,
        "retained_hit_rate_at_1": recall,
        "latency_ms_p50": 3.1,
        "latency_ms_p95": 3.9,
        "images_per_s": 800.0,
    }
    return OperatingPoint(submodel=submodel, macs=macs, **(values | changes))


def unlabelled(submodel="S", macs=100, overlap=0.9):
    return point(
        submodel, macs, hit_rate_at_1=None, recall_at_k=None, map_at_r=None,
        retained_hit_rate_at_1=None, overlap_at_k=overlap,
    )  # fmt: skip


SIZES = [point("S", 400, 0.90), point("M", 500, 0.96), point("L", 700, 0.95), point("XL", 1000, 1)]
CONDITIONS = Conditions(
    encoder="tiny", fingerprint="0123456789abcdef", images=1000, queries=500, unreadable=1,
    without_relevant=2, in_index=3, device="cpu, 2 threads", precision="float32",
)  # fmt: skip

# Few distinct values, so that ties happen.
measured = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([0.0, 0.5, 0.75, 1.0])), min_size=1, max_size=12
).map(lambda pairs: [point(str(i), macs, recall) for i, (macs, recall) in enumerate(pairs)])


def dominates(a, b):
    no_worse = a.macs <= b.macs and a.recall >= b.recall
    return no_worse and (a.macs < b.macs or a.recall > b.recall)


@given(measured)
def test_frontier_is_exactly_the_non_dominated_points(points):
    expected = {p.submodel for p in points if not any(dominates(q, p) for q in points)}
    assert {p.submodel for p in ParetoFrontier(points).pareto} == expected


@given(measured)
def test_pareto_is_marked_on_the_points_themselves(points):
    frontier = ParetoFrontier(points)
    assert [p for p in frontier if p.pareto] == list(frontier.pareto)
    assert all(p.pareto is not None for p in frontier)


@given(measured, st.randoms())
def test_order_of_the_points_does_not_matter(points, random):
    shuffled = random.sample(points, len(points))
    assert ParetoFrontier(shuffled) == ParetoFrontier(points)


@given(measured)
def test_points_are_sorted_by_macs_and_none_is_lost(points):
    frontier = ParetoFrontier(points)
    assert [p.macs for p in frontier] == sorted(p.macs for p in points)
    assert {p.submodel for p in frontier} == {p.submodel for p in points}
    assert len(frontier) == len(points)


@given(measured, st.sampled_from([0.0, 0.5, 0.6, 1.0]))
def test_cheapest_is_the_least_compute_that_reaches_the_recall(points, min_recall):
    reaching = [p for p in points if p.recall >= min_recall]
    if not reaching:
        with pytest.raises(ValueError, match="no submodel reaches"):
            ParetoFrontier(points).cheapest(min_recall)
        return
    chosen = ParetoFrontier(points).cheapest(min_recall)
    assert chosen in reaching
    assert chosen.macs == min(p.macs for p in reaching)
    assert not any(dominates(p, chosen) for p in points)


@given(measured, st.integers(0, 5))
def test_best_is_the_highest_recall_within_the_budget(points, max_macs):
    fitting = [p for p in points if p.macs <= max_macs]
    if not fitting:
        with pytest.raises(ValueError, match="no submodel fits"):
            ParetoFrontier(points).best(max_macs=max_macs)
        return
    chosen = ParetoFrontier(points).best(max_macs=max_macs)
    assert chosen in fitting
    assert chosen.recall == max(p.recall for p in fitting)
    assert not any(dominates(p, chosen) for p in points)


def test_points_equal_in_both_are_all_kept():
    twins = [point("2xS,2xL", 500), point("2xL,2xS", 500)]
    assert [p.submodel for p in ParetoFrontier(twins).pareto] == ["2xL,2xS", "2xS,2xL"]


def test_a_point_that_costs_more_and_finds_less_is_not_on_the_frontier():
    assert [p.submodel for p in ParetoFrontier(SIZES).pareto] == ["S", "M", "XL"]


def test_full_is_the_point_that_costs_everything():
    full = ParetoFrontier(SIZES).full
    assert full is not None
    assert full.submodel == "XL"
    assert ParetoFrontier(SIZES[:2]).full is None


def test_recall_is_the_retained_hit_rate_with_labels_and_the_overlap_without():
    assert (point(recall=0.9).recall, point().metric) == (0.9, "retained_hit_rate@1")
    assert (unlabelled(overlap=0.6).recall, unlabelled().metric) == (0.6, "overlap@10")
    assert ParetoFrontier(SIZES).metric == "retained_hit_rate@1"
    assert ParetoFrontier([unlabelled()]).metric == "overlap@10"


def test_a_frontier_can_rank_by_another_metric():
    points = [point("S", 1, 0.9, map_at_r=0.3), point("M", 2, 0.8, map_at_r=0.4)]
    frontier = ParetoFrontier(points, metric="map@r")
    assert [p.submodel for p in frontier.pareto] == ["S", "M"]
    assert frontier.recall(frontier.points[1]) == 0.4
    assert frontier.cheapest(0.35).submodel == "M"


def test_a_millisecond_budget_is_about_the_median():
    points = [
        point("S", 1, 0.9, latency_ms_p50=2.0, latency_ms_p95=9.0),
        point("XL", 2, 1.0, latency_ms_p50=5.0),
    ]
    frontier = ParetoFrontier(points)
    assert frontier.best(max_ms=2.0).submodel == "S"
    assert frontier.best(max_ms=5.0).submodel == "XL"
    assert frontier.best(max_ms=5.0, max_macs=1).submodel == "S"


def test_errors_name_the_nearest_point():
    frontier = ParetoFrontier(SIZES[:3])
    for call, message in (
        (
            lambda: frontier.cheapest(0.99),
            "no submodel reaches retained_hit_rate@1 0.99; the best, M, reaches 0.9600 for 500",
        ),
        (
            lambda: frontier.best(max_macs=399),
            "no submodel fits in 3.99e-07 GMACs; the nearest, S, needs 4e-07 GMACs",
        ),
        (
            lambda: frontier.best(max_ms=1.5),
            "no submodel fits in 1.5 ms; the nearest, S, needs 3.1 ms",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_a_budget_must_be_given():
    with pytest.raises(ValueError, match="give max_macs, max_ms or both"):
        ParetoFrontier(SIZES).best()


def test_a_millisecond_budget_needs_measured_latency():
    frontier = ParetoFrontier([point(latency_ms_p50=None)])
    with pytest.raises(ValueError, match="milliseconds were not measured"):
        frontier.best(max_ms=5)


def test_points_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="at least one operating point"):
        ParetoFrontier([])
    with pytest.raises(ValueError, match="overlap@10 and retained_hit_rate@1 cannot be ranked"):
        ParetoFrontier([point(), unlabelled()])
    with pytest.raises(ValueError, match="overlap@10 and overlap@5 cannot be ranked"):
        ParetoFrontier([unlabelled(), OperatingPoint(**vars(unlabelled()) | {"k": 5})])


def test_an_unknown_or_unmeasured_metric_is_refused():
    with pytest.raises(ValueError, match=r"unknown metric 'accuracy'; known: hit_rate@1, recall@1"):
        ParetoFrontier(SIZES, metric="accuracy")
    with pytest.raises(ValueError, match="map@r of S was not measured; it needs labels"):
        ParetoFrontier([unlabelled()], metric="map@r")


def test_json_of_a_point_has_the_documented_shape():
    documented = (
        '{"submodel": "S", "macs": 440, "macs_fraction": 0.44, "params": 4400, "queries": 500, '
        '"hit_rate@1": 0.792, "recall@10": 0.5, "map@r": 0.4, "overlap@10": 0.7, '
        '"retained_hit_rate@1": 0.99, "latency_ms_p50": 3.1, "latency_ms_p95": 3.9, '
        '"images_per_s": 800.0, "pareto": true}'
    )
    frontier = ParetoFrontier([point("S", 440, 0.99)])
    assert json.dumps(frontier.points[0].to_dict()) == documented


def test_label_metrics_are_null_without_labels():
    values = unlabelled().to_dict()
    nulls = {key for key, value in values.items() if value is None}
    labelled = {"hit_rate@1", "recall@10", "map@r", "retained_hit_rate@1"}
    assert nulls == labelled | {"pareto"}  # and no frontier has placed it


@given(measured)
def test_json_round_trip(points):
    frontier = ParetoFrontier(points, conditions=CONDITIONS)
    restored = ParetoFrontier.from_json(frontier.to_json())
    assert restored == frontier
    assert restored.conditions == CONDITIONS
    assert restored.pareto == frontier.pareto
    assert [p.to_dict() for p in restored] == [p.to_dict() for p in frontier]


def test_json_from_before_the_weights_were_named_can_be_read():
    stored = json.loads(ParetoFrontier(SIZES, conditions=CONDITIONS).to_json())
    del stored["conditions"]["weights"]
    assert ParetoFrontier.from_json(json.dumps(stored)).conditions == CONDITIONS


def test_json_of_something_else_is_refused():
    stray = json.loads(ParetoFrontier(SIZES).to_json())
    stray["points"][0]["colour"] = "red"
    with pytest.raises(ValueError, match=r"unknown or missing keys: \['colour'\]"):
        ParetoFrontier.from_json(json.dumps(stray))
    for text in ("[]", '{"points": []}', '{"metric": null, "conditions": {"a": 1}, "points": []}'):
        with pytest.raises(ValueError, match="not a frontier that to_json wrote"):
            ParetoFrontier.from_json(text)


def test_a_number_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="map_at_r must be a finite number or None, got nan"):
        point(map_at_r=float("nan"))


def test_points_of_a_frontier_equal_the_points_it_was_given():
    assert set(ParetoFrontier(SIZES)) == set(SIZES)
