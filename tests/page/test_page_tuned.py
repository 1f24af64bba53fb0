from __future__ import annotations

import pytest
from photo_index import open_photos, tune

from app.page.opened import Opened
from app.page.tuned import Tuned, read_tuned
from matvit.extraction import extract
from retrieval import Retriever


@pytest.fixture
def opened(tiny_model, photo_folder, tmp_path) -> Opened:
    return open_photos(tiny_model, photo_folder, tmp_path / "i.index")


def test_an_index_that_was_never_tuned_has_nothing_to_tell(opened):
    assert read_tuned(opened.retriever) == Tuned()


def test_what_tuning_stored_is_told(opened):
    stored = tune(opened)
    found = read_tuned(opened.retriever)
    assert (found.frontier, found.summary) == (stored.frontier, stored.summary)
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
    opened.index.remove([0])
    assert "was tuned at generation 1 with 12 images" in str(read_tuned(opened.retriever).problem)


def test_a_damaged_file_is_named_and_nothing_else_told(opened):
    tune(opened)
    (opened.index.path / "tuning.json").write_text("{}")
    found = read_tuned(opened.retriever)
    assert "tuning.json is damaged" in str(found.problem)
    assert found.frontier is None


def test_an_extracted_submodel_has_nothing_to_choose_from(opened, tiny_model):
    tune(opened)
    assert read_tuned(Retriever(extract(tiny_model, "S"), opened.index)) == Tuned()
