from __future__ import annotations

from dataclasses import replace

import pytest

from retrieval import Budget, OperatingPoint, ParetoFrontier

MACS = {"S": 1_000_000_000, "M": 2_000_000_000, "L": 3_000_000_000, "XL": 4_000_000_000}
OVERLAP = {"S": 0.7, "M": 0.8, "L": 0.75, "XL": 1.0}
MS = {"S": 5.0, "M": 9.0, "L": 6.0, "XL": 12.0}


@pytest.fixture
def frontier():
    return ParetoFrontier(
        OperatingPoint(
            submodel=name, macs=macs, macs_fraction=macs / MACS["XL"], params=1, queries=10, k=10,
            overlap_at_k=OVERLAP[name], latency_ms_p50=MS[name],
        )
        for name, macs in MACS.items()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"max_gmacs": 1.0}, "S"),
        ({"max_gmacs": 3.5}, "M"),  # L costs more and finds less
        ({"max_gmacs": 100}, "XL"),
        ({"max_ms": 8.0}, "L"),  # fits and finds more than S, though not on the frontier of MACs
        ({"max_ms": 5.0}, "S"),
        ({"max_ms": 50, "max_gmacs": 2.5}, "M"),
        ({"min_recall": 0.0}, "S"),
        ({"min_recall": 0.75}, "M"),
        ({"min_recall": 0.75, "max_ms": 7}, "L"),
        ({"min_recall": 0.9, "max_gmacs": 4}, "XL"),
    ],
)
def test_a_budget_buys_the_best_and_a_recall_costs_the_least(frontier, budget, expected):
    assert Budget(**budget).pick(frontier).submodel == expected


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"max_gmacs": 0.5}, r"no submodel fits in 0.5 GMACs; the nearest, S, needs 1 GMACs"),
        ({"max_ms": 2}, r"no submodel fits in 2 ms; the nearest, S, needs 5 ms"),
        ({"min_recall": 0.9, "max_ms": 9}, r"reaches overlap@10 0.9; the best, M, reaches 0.8000"),
    ],
)
def test_a_budget_that_nothing_meets_names_the_nearest(frontier, budget, message):
    with pytest.raises(ValueError, match=message):
        Budget(**budget).pick(frontier)


def test_the_number_in_the_message_is_enough(frontier):
    for macs in (143_944_704, 322_833_408, 999_999_999, 1):
        points = [replace(frontier.points[0], macs=macs)]
        with pytest.raises(ValueError, match="needs") as refused:
            Budget(max_gmacs=1e-12).pick(ParetoFrontier(points))
        needed = float(str(refused.value).split()[-2])
        assert macs <= needed * 1e9 <= macs * 1.001
        Budget(max_gmacs=needed).pick(ParetoFrontier(points))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "a budget is needed: give max_gmacs, max_ms or min_recall"),
        ({"max_gmacs": 0}, "max_gmacs must be a number above 0, got 0"),
        ({"max_ms": float("nan")}, "max_ms must be a number above 0, got nan"),
        ({"min_recall": 1.5}, r"min_recall must be within 0..1, got 1.5"),
    ],
)
def test_a_budget_out_of_range_is_refused(budget, message):
    with pytest.raises(ValueError, match=message):
        Budget(**budget)
