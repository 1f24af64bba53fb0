"""The page, run by Streamlit's own test harness."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import streamlit as st
import torch
from streamlit.testing.v1 import AppTest

from indexing import Corpus, ImageIndex
from matvit.extract import extract, save_extracted
from matvit.model import MatViT
from retrieval import Retriever, evaluate
from retrieval.report import write_report

PAGE = Path(__file__).parent.parent / "app" / "streamlit_app.py"


@pytest.fixture
def open_page(monkeypatch, tmp_path):
    """Start the page as `matvit app` does, in an empty folder, with nothing cached."""
    monkeypatch.chdir(tmp_path)
    st.cache_resource.clear()
    st.cache_data.clear()

    def start(*arguments: object) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["streamlit_app.py", *map(str, arguments)])
        return AppTest.from_file(str(PAGE), default_timeout=60).run()

    return start


@pytest.fixture
def place(tiny_model, photo_folder, tmp_path) -> Path:
    """An index, its encoder and a report, in one folder."""
    tiny_model.save(tmp_path / "encoder")
    index = ImageIndex.build(tiny_model, Corpus.open(photo_folder), tmp_path / "i.index")
    frontier = evaluate(
        Retriever(tiny_model, index), Corpus.open(photo_folder), ["S", "M", "L"], latency_queries=1
    )
    write_report(frontier, tmp_path / "report")
    return tmp_path


@pytest.fixture
def page(open_page, place) -> AppTest:
    return open_page("--index", place / "i.index", "--encoder", place / "encoder")


def titles(page: AppTest) -> list[str]:
    return [element.value for element in page.subheader]


def test_the_sizes_stand_side_by_side_with_what_they_cost(page):
    assert not page.exception
    assert titles(page) == ["Query", "S", "M", "L", "XL"]
    text = " ".join(element.value for element in page.markdown)
    assert "**12 images** embedded once at full size by **tiny**" in text
    assert "GMACs · 100% of full" in text
    assert "**100%** of the full encoder's hits" in text


def test_the_frontier_is_drawn_from_the_report_beside_the_index(page):
    charts = page.get("vega_lite_chart") or page.get("arrow_vega_lite_chart")
    assert len(charts) == 1


def test_choosing_sizes_and_hits_changes_what_is_shown(page):
    page.multiselect[0].set_value(["S"])
    page.slider[0].set_value(2)
    page.text_input[0].set_value("1xS,1xXL")
    page.run()
    assert titles(page)[:3] == ["Query", "S", "1xS,1xXL"]
    asks = [button for button in page.button if button.label == "Ask with this"]
    assert len(asks) == 4


def test_a_size_nobody_knows_is_one_friendly_line(page):
    page.text_input[0].set_value("huge").run()
    assert not page.exception
    assert [error.value for error in page.error] == [
        "unknown size 'huge'; known sizes: S, M, L, XL"
    ]


def test_a_hit_can_be_asked_with(page):
    second = next(button for button in page.button if button.key == "XL-2")
    second.click().run()
    assert not page.exception
    captions = [element.value for element in page.markdown]
    assert any(caption.startswith("1 · 1.000 =") for caption in captions)


def test_an_upload_asks_and_an_unreadable_one_is_one_friendly_line(page, photo_folder):
    good = (photo_folder / "bread" / "01.png").read_bytes()
    page.file_uploader[0].set_value(("mine.png", good, "image/png")).run()
    assert not page.exception
    assert not page.error
    page.file_uploader[0].set_value(("mine.png", b"text", "image/png")).run()
    assert not page.exception
    assert [error.value for error in page.error] == [
        "This cannot be used as a query: not a readable image: cannot identify image file"
    ]


def test_a_size_that_is_shown_already_is_not_shown_twice(page):
    page.text_input[0].set_value("2xS").run()
    assert not page.exception
    assert titles(page) == ["Query", "S", "M", "L", "XL"]


def test_a_click_counts_after_an_upload_too(page, photo_folder):
    data = (photo_folder / "bread" / "01.png").read_bytes()
    page.file_uploader[0].set_value(("mine.png", data, "image/png")).run()
    next(button for button in page.button if button.key == "XL-3").click().run()
    assert not page.exception
    shown = [element.value for element in page.markdown]
    assert any(text.startswith("class **") for text in shown)  # an upload has no class


def test_a_report_of_another_index_is_not_shown(open_page, place, tiny_model, photo_folder):
    few = Corpus.open(photo_folder).subset(range(5))
    ImageIndex.build(tiny_model, few, place / "few.index")
    page = open_page("--index", place / "few.index", "--encoder", place / "encoder")
    assert not page.exception
    assert "measured on another index" in page.warning[0].value


def test_a_report_of_another_conversion_of_the_same_encoder_is_not_shown(
    open_page, place, tiny_model, photo_folder
):
    """They share name and fingerprint; a report from before the weights were named says no more."""
    for seed in (1, 2):
        torch.manual_seed(seed)
        converted = MatViT(tiny_model.config, tiny_model.preprocess, "converted")
        converted.serve_full_size_from(tiny_model)
        converted.save(place / str(seed))
    retriever = Retriever(MatViT.load(place / "1"), ImageIndex.open(place / "i.index"))
    frontier = evaluate(retriever, Corpus.open(photo_folder), ["S", "XL"], latency_queries=1)
    write_report(frontier, place / "report")

    def is_shown(encoder: str) -> bool:
        page = open_page("--index", place / "i.index", "--encoder", place / encoder)
        assert not page.exception
        return not page.warning

    assert (is_shown("1"), is_shown("2")) == (True, False)
    report = place / "report" / "report.json"
    document = json.loads(report.read_text())
    del document["conditions"]["weights"]
    report.write_text(json.dumps(document))
    assert not is_shown("2")


def test_an_extracted_encoder_offers_the_one_size_it_has(open_page, place, tiny_model):
    save_extracted(extract(tiny_model, "S"), place / "small")
    page = open_page("--index", place / "i.index", "--encoder", place / "small")
    assert not page.exception
    assert not page.error
    assert titles(page) == ["Query", "S"]
    assert not any("100% of full" in element.value for element in page.markdown)


def test_images_that_vanished_are_said_to_be_gone(open_page, place, photo_folder):
    for path in (photo_folder / "cheese").iterdir():
        path.unlink()
    page = open_page("--index", place / "i.index", "--encoder", place / "encoder")
    page.slider[0].set_value(12).run()
    assert not page.exception
    assert any("is gone or has changed" in element.value for element in page.caption)


def test_without_an_index_the_page_says_how_to_make_one(open_page):
    page = open_page()
    assert not page.exception
    assert page.info[0].value == "There is no index yet."
    assert any("matvit index build" in block.value for block in page.code)
    assert [button.label for button in page.button] == ["Build the demo"]


def test_an_index_that_cannot_be_opened_is_one_friendly_line(open_page, tmp_path):
    page = open_page("--index", tmp_path / "gone.index")
    assert not page.exception
    assert "gone.index" in page.error[0].value
