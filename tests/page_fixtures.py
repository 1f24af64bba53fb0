"""The page, run by Streamlit's own test harness: what its tests start from."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
from page_driver import measure
from streamlit.testing.v1 import AppTest

from indexing import Corpus, ImageIndex
from matvit.model import MatViT
from retrieval import Retriever

PAGE = Path(__file__).parent.parent / "app" / "streamlit_app.py"


@pytest.fixture
def open_page(monkeypatch, tmp_path):
    """Start the page as `matvit app` does, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def start(*arguments: object, **address: str | list[str]) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["streamlit_app.py", *map(str, arguments)])
        page = AppTest.from_file(str(PAGE), default_timeout=60)
        for name, value in address.items():
            page.query_params[name] = value
        return page.run()

    return start


@pytest.fixture(scope="session")
def shared_place(tiny_model, shared_photos, tmp_path_factory) -> Path:
    """An index, its encoder and a report in one folder, for tests that leave them as they are."""
    return furnish(tmp_path_factory.mktemp("page"), tiny_model, shared_photos)


@pytest.fixture
def place(tiny_model, photo_folder, tmp_path, shared_place) -> Path:
    """The same, for a test that changes something."""
    report = (shared_place / "report" / "report.json").read_text()
    return furnish(tmp_path, tiny_model, photo_folder, report)


def furnish(place: Path, model: MatViT, photos: Path, report: str | None = None) -> Path:
    model.save(place / "encoder")
    index = ImageIndex.build(model, Corpus.open(photos), place / "i.index")
    (place / "report").mkdir()
    (place / "report" / "report.json").write_text(
        measure(Retriever(model, index), photos) if report is None else report
    )
    return place


@pytest.fixture
def follow_link(open_page, shared_place):
    """Open the page of an index that stays as it is: what it found once is found again at once."""
    return partial(
        open_page, "--index", shared_place / "i.index", "--encoder", shared_place / "encoder"
    )


@pytest.fixture
def page(follow_link) -> AppTest:
    return follow_link()


@pytest.fixture
def own_page(open_page, place) -> AppTest:
    """The page of an index that the test changes."""
    return open_page("--index", place / "i.index", "--encoder", place / "encoder")
