from __future__ import annotations

from pathlib import Path

import pytest
from photo_index import open_photos, tune

from app.page.choice import Unit
from app.page.frontiers import find_measured
from app.page.opened import Opened, open_all
from indexing import Corpus
from retrieval import ParetoFrontier, evaluate


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
    found = find_measured(opened, tmp_path / "report.json")
    assert (found.frontier, found.problem, found.conditions) == (None, None, "")


def test_a_report_is_read(opened, frontier, tmp_path):
    report = save(frontier, tmp_path / "report")
    found = find_measured(opened, report)
    assert found.frontier == frontier
    assert found.source == "from report/report.json"
    assert "12 queries (12 in the index themselves) against 12 images" in found.conditions


def test_what_was_measured_on_the_page_comes_before_a_report(opened, frontier, tmp_path):
    report = save(frontier, tmp_path / "report")
    own = ParetoFrontier(frontier.points[:1], conditions=frontier.conditions)
    found = find_measured(opened, report, own)
    assert (found.frontier, found.source) == (own, "measured on this page")


def test_a_budget_chooses_by_tuning_only_where_tuning_is_shown(
    opened, frontier, tiny_model, tmp_path
):
    report = save(frontier, tmp_path / "report")
    assert find_measured(opened, report).bought_from(Unit.GMACS) == frontier
    stored = tune(opened)
    opened = open_all(opened.index, tiny_model)
    assert find_measured(opened, report).bought_from(Unit.GMACS) == stored.by_overlap
    assert find_measured(opened, report, frontier).bought_from(Unit.GMACS) == frontier


def test_measurements_of_what_the_index_was_before_are_not_shown(opened, frontier, tmp_path):
    report = save(frontier, tmp_path / "report")
    opened.index.remove([0])
    found = find_measured(opened, report, frontier)
    assert found.frontier is None
    assert found.problem is not None
    assert "was measured on another index or encoder; it is not shown" in found.problem


@pytest.mark.parametrize("text", ["", "[]", '{"points": 1}'])
def test_a_file_that_is_no_report_is_a_problem_and_no_error(opened, tmp_path: Path, text):
    report = tmp_path / "report.json"
    report.write_text(text)
    found = find_measured(opened, report)
    assert found.frontier is None
    assert str(report) in str(found.problem)
