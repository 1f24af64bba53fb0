"""The page, run by Streamlit's own test harness: what its tests start from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import streamlit as st
from page_driver import measure
from streamlit.testing.v1 import AppTest

from indexing import Corpus, ImageIndex
from retrieval import Retriever

PAGE = Path(__file__).parent.parent / "app" / "streamlit_app.py"


@pytest.fixture
def open_page(monkeypatch, tmp_path):
    """Start the page as `matvit app` does, in an empty folder, with nothing cached."""
    monkeypatch.chdir(tmp_path)
    st.cache_resource.clear()
    st.cache_data.clear()

    def start(*arguments: object, **address: str | list[str]) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["streamlit_app.py", *map(str, arguments)])
        page = AppTest.from_file(str(PAGE), default_timeout=60)
        for name, value in address.items():
            page.query_params[name] = value
        return page.run()

    return start


@pytest.fixture
def place(tiny_model, photo_folder, tmp_path, reports) -> Path:
    """An index, its encoder and a report, in one folder."""
    tiny_model.save(tmp_path / "encoder")
    index = ImageIndex.build(tiny_model, Corpus.open(photo_folder), tmp_path / "i.index")
    if not reports:  # the photos are the same ones in every test
        reports.append(measure(Retriever(tiny_model, index), photo_folder))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(reports[0])
    return tmp_path


@pytest.fixture(scope="session")
def reports() -> list[str]:
    return []


@pytest.fixture
def page(open_page, place) -> AppTest:
    return open_page("--index", place / "i.index", "--encoder", place / "encoder")
