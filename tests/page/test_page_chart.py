from __future__ import annotations

from dataclasses import replace

import pytest
from points import point

from app.page.chart import CLICK, clicked, describe, frontier_chart, frontier_table, in_words
from retrieval import ParetoFrontier

FRONTIER = ParetoFrontier(
    [
        point("S", 0.1, 0.5, 7),
        point("2xS,4xM", 0.2, 0.4, 8),
        point("4xM,2xL", 0.3, 0.8, 9),
        point("XL", 0.4, 1.0, 10),
    ]
)


def test_every_point_is_a_row_and_says_what_it_is():
    table = frontier_table(FRONTIER, {"2xS,4xM"}, "4xM,2xL")
    assert list(table.submodel) == ["S", "2xS,4xM", "4xM,2xL", "XL"]
    assert list(table.kind) == ["trained", "other", "frontier", "trained"]
    assert list(table.name) == ["S", "2xS,4xM", "★ 4xM,2xL", "XL"]
    assert list(table.pareto) == [True, False, True, True]
    assert list(table.chosen) == [False, True, False, False]
    assert list(table.recall) == [0.5, 0.4, 0.8, 1.0]
    assert list(table.gmacs) == [0.1, 0.2, 0.3, 0.4]


def test_the_chart_holds_the_table_and_can_be_clicked():
    chart = frontier_chart(FRONTIER, {"S"}, clickable=True).to_dict()
    (rows,) = chart["datasets"].values()
    assert [row["submodel"] for row in rows] == ["S", "2xS,4xM", "4xM,2xL", "XL"]
    (click,) = chart["params"]
    assert (click["name"], click["select"]["fields"]) == (CLICK, ["submodel"])
    assert cursors(chart) == {"pointer"}


def test_a_chart_that_takes_no_clicks_does_not_ask_for_them():
    chart = frontier_chart(FRONTIER).to_dict()
    assert "params" not in chart
    assert cursors(chart) == {"default"}


def cursors(chart: dict) -> set[str]:
    return {layer["mark"]["cursor"] for layer in chart["layer"] if "cursor" in layer["mark"]}


@pytest.mark.parametrize(
    ("metric", "line"),
    [("overlap@10", "S · 0.100 GMACs · 50.0%"), ("hit_rate@1", "S · 0.100 GMACs · 0.500")],
)
def test_a_point_is_a_line_of_cost_and_recall(metric, line):
    found = replace(FRONTIER.points[0], hit_rate_at_1=0.5)
    assert in_words(ParetoFrontier([found], metric=metric), found) == line


@pytest.mark.parametrize(("ms", "shown"), [(7.0, True), (None, False)])
def test_milliseconds_are_in_the_details_only_where_they_were_measured(ms, shown):
    chart = frontier_chart(ParetoFrontier([point("S", 0.1, 0.5, ms)])).to_dict()
    fields = [
        detail["field"]
        for layer in chart["layer"]
        for detail in layer["encoding"].get("tooltip", [])
    ]
    assert ("latency_ms" in fields) == shown


@pytest.mark.parametrize(
    ("event", "submodel"),
    [
        ({"selection": {CLICK: [{"submodel": "S"}]}}, "S"),
        ({"selection": {CLICK: []}}, None),
        ({"selection": {}}, None),
        (None, None),
    ],
)
def test_a_click_names_a_submodel_or_nothing(event, submodel):
    assert clicked(event) == submodel


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("overlap@10", "share of the full encoder's top 10 found"),
        ("retained_hit_rate@1", "hit rate@1, share of the full encoder's"),
        ("map@r", "map@r"),
    ],
)
def test_metrics_are_put_into_words(metric, words):
    assert describe(metric) == words
