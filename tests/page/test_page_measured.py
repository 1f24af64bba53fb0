from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from photo_index import open_photos, tune
from points import point

from app.page.measured import (
    Measured,
    Tuned,
    Unit,
    budget_range,
    find_measured,
    found_in,
    read_tuned,
    spent,
    units,
    within,
)
from app.page.opened import Opened, open_all
from indexing import Corpus
from matvit.extraction import extract
from retrieval import ParetoFrontier, Retriever, evaluate

FRONTIER = ParetoFrontier(
    [
        point("S", 0.14392, 0.90, 7.04),
        point("M", 0.1694, 0.95, 7.6),
        point("L", 0.221, 0.93, 8.6),
        point("XL", 0.32283, 1.0, 10.61),
    ]
)


def find(opened: Opened, report: Path, own: ParetoFrontier | None = None) -> Measured:
    return find_measured(opened.retriever, opened.tuned, report, own)


@pytest.fixture
def opened(tiny_model, photo_folder, tmp_path) -> Opened:
    return open_photos(tiny_model, photo_folder, tmp_path / "i.index")


@pytest.fixture
def frontier(opened, photo_folder) -> ParetoFrontier:
    return evaluate(opened.retriever, Corpus.open(photo_folder), ["S", "M"], latency_queries=0)


def save(frontier: ParetoFrontier, folder: Path) -> Path:
    folder.mkdir()
    file = folder / "report.json"
    file.write_text(frontier.to_json())
    return file


def test_without_any_measurement_there_is_none(opened, tmp_path):
    found = find(opened, tmp_path / "report.json")
    assert (found.frontier, found.problem, found.conditions) == (None, None, "")


def test_a_report_is_read(opened, frontier, tmp_path):
    report = save(frontier, tmp_path / "report")
    found = find(opened, report)
    assert found.frontier == frontier
    assert (found.source, found.file) == ("from", "report/report.json")
    assert (
        "12 queries (12 in the index themselves, 9 with a near-duplicate in it)" in found.conditions
    )
    assert "against 12 images" in found.conditions


def test_what_was_measured_on_the_page_comes_before_a_report(opened, frontier, tmp_path):
    report = save(frontier, tmp_path / "report")
    own = ParetoFrontier(frontier.points[:1], conditions=frontier.conditions)
    found = find(opened, report, own)
    assert (found.frontier, found.source) == (own, "measured on this page")


def test_a_budget_chooses_by_tuning_only_where_tuning_is_shown(
    opened, frontier, tiny_model, tmp_path
):
    report = save(frontier, tmp_path / "report")
    assert find(opened, report).bought_from(Unit.GMACS) == frontier
    stored = tune(opened)
    opened = open_all(opened.index, tiny_model)
    assert find(opened, report).bought_from(Unit.GMACS) == stored.by_overlap
    assert find(opened, report, frontier).bought_from(Unit.GMACS) == frontier


def test_measurements_of_what_the_index_was_before_are_not_shown(opened, frontier, tmp_path):
    report = save(frontier, tmp_path / "report")
    opened = open_all(opened.index.remove([0]), opened.retriever.encoder)
    found = find(opened, report, frontier)
    assert found.frontier is None
    assert found.problem is not None
    assert "was measured on another index or encoder; it is not shown" in found.problem


@pytest.mark.parametrize("text", ["", "[]", '{"points": 1}'])
def test_a_file_that_is_no_report_is_a_problem_and_no_error(opened, tmp_path: Path, text):
    report = tmp_path / "report.json"
    report.write_text(text)
    found = find(opened, report)
    assert found.frontier is None
    assert str(report) in str(found.problem)


def test_an_index_that_was_never_tuned_has_nothing_to_tell(opened):
    assert read_tuned(opened.retriever) == Tuned()


def test_what_tuning_stored_is_told(opened):
    stored = tune(opened)
    found = read_tuned(opened.retriever)
    assert (found.tuning, found.summary) == (stored, stored.summary)
    assert found.recommended == "1xS,1xL"
    assert found.auto == (
        "S → XL, as far as a query needs: 60% of the compute on average, "
        "2.0 points of first hits lost"
    )
    assert found.problem is None


def test_queries_choose_only_where_that_was_found_worth_it(opened):
    tune(opened, auto=False)
    assert read_tuned(opened.retriever).auto is None


def test_an_index_that_changed_since_is_named(opened):
    tune(opened)
    opened = open_all(opened.index.remove([0]), opened.retriever.encoder)
    assert "was tuned at generation 1 with 12 images" in str(read_tuned(opened.retriever).problem)


def test_a_damaged_file_is_named_and_nothing_else_told(opened):
    tune(opened)
    (opened.index.path / "tuning.json").write_text("{}")
    found = read_tuned(opened.retriever)
    assert "tuning.json is damaged" in str(found.problem)
    assert found.tuning is None


def test_an_extracted_submodel_has_nothing_to_choose_from(opened, tiny_model):
    tune(opened)
    assert read_tuned(Retriever(extract(tiny_model, "S"), opened.index)) == Tuned()


@pytest.mark.parametrize(
    ("unit", "limit", "chosen"),
    [
        (Unit.GMACS, 0.144, "S"),
        (Unit.GMACS, 0.2, "M"),
        (Unit.GMACS, 0.3, "M"),  # L costs more than M and finds less
        (Unit.GMACS, 0.323, "XL"),
        (Unit.MS, 7.5, "S"),
        (Unit.MS, 10.7, "XL"),
    ],
)
def test_a_budget_buys_the_best_within_it(unit, limit, chosen):
    assert within(FRONTIER, unit, limit).submodel == chosen


def test_a_budget_that_nothing_meets_names_the_nearest():
    with pytest.raises(ValueError, match="the nearest, S, needs"):
        within(FRONTIER, Unit.GMACS, 0.1)


@pytest.mark.parametrize("unit", list(Unit))
def test_both_ends_of_the_slider_buy_something(unit):
    limits = budget_range(FRONTIER, unit)
    assert within(FRONTIER, unit, limits.low).submodel == "S"
    assert within(FRONTIER, unit, limits.high).submodel == "XL"
    assert limits.low - limits.step < spent(FRONTIER.points[0], unit) <= limits.low


@given(
    st.lists(st.tuples(st.floats(1e-3, 500), st.floats(0, 1)), min_size=1, max_size=8),
)
def test_every_budget_on_the_slider_buys_something(pairs):
    frontier = ParetoFrontier(
        [point(f"1x{place + 1}", gmacs, recall) for place, (gmacs, recall) in enumerate(pairs)]
    )
    limits = budget_range(frontier, Unit.GMACS)
    assert limits.low < limits.high
    for value in (limits.low, limits.high, limits.clip(0), limits.clip(1e9)):
        assert limits.low <= value <= limits.high
        within(frontier, Unit.GMACS, value)
    for each in frontier.pareto:
        clipped = limits.clip(spent(each, Unit.GMACS))
        assert frontier.recall(within(frontier, Unit.GMACS, clipped)) >= frontier.recall(each)


def test_milliseconds_are_offered_only_where_they_were_measured():
    assert units(FRONTIER) == [Unit.GMACS, Unit.MS]
    assert units(ParetoFrontier([point("S", 0.1, 0.9)])) == [Unit.GMACS]


def test_only_what_was_measured_is_found():
    found = found_in(FRONTIER, "M")
    assert found is not None
    assert found.submodel == "M"
    assert found_in(FRONTIER, "2xS,4xM") is None
    assert found_in(None, "M") is None
