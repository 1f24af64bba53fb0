"""The first tab of the page: one query, several sizes."""

from __future__ import annotations

import re

import pytest
import streamlit.testing.v1.local_script_runner as runner
from page_driver import PAGES, address, ask, hits, html, press, titles, turn_to
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager

from indexing import ImageIndex
from retrieval import Retriever


def test_the_sizes_stand_one_below_the_other_with_what_they_cost(page):
    assert not page.exception
    assert titles(page) == ["S", "M", "L", "XL"]
    assert "**12 images** embedded once at full size by **tiny**" in page.markdown[0].value
    small, *_, full = html(page, "head")
    assert re.fullmatch(
        r"S 0\.00\d GMACs · \d+% \d+\.\d ms = \d+\.\d \+ \d+\.\d \+ \d+\.\d "
        r"finds \d of full's 6 ✓ \d of 6",
        small,
    )
    assert full.startswith("XL full 0.00")
    assert "· 100%" in full
    assert "of full's" not in full
    assert len(html(page, "cell")) == 24


def test_the_query_is_shown_as_a_whole_and_as_the_encoder_sees_it(page):
    assert html(page, "query") == ["apple/00.png class apple"]
    assert html(page, "seen") == ["All the encoder sees: 16 by 16 pixels"]


def test_choosing_sizes_and_hits_changes_what_is_shown(page):
    page.pills(key="sizes").set_value(["M"])
    page.slider(key="k").set_value(2)
    page.run()
    assert titles(page) == ["M"]
    assert len(html(page, "cell")) == 2
    page.pills(key="sizes").set_value([]).run()
    assert titles(page) == ["XL"]  # something has to answer


def test_a_hit_can_be_asked_with(page):
    _, found = hits(page, "strip-3-")["strip-3-2"]
    ask(page, "strip-3-2")
    assert not page.exception
    assert html(page, "query")[0].startswith(found)
    assert len(hits(page, "strip-")) == 24
    assert found not in [name for _, name in hits(page, "strip-").values()]


def test_another_image_of_the_index_asks(page, monkeypatch):
    monkeypatch.setattr("app.page.visit.random.choice", lambda ids: ids[7])
    press(page, "another")
    assert address(page)["query"] == ["7"]
    press(page, "another")
    assert address(page)["query"] == ["8"]  # another, whatever chance says


def test_an_upload_asks_and_the_uploader_is_empty_for_the_next(page, photo_folder):
    data = (photo_folder / "bread" / "01.png").read_bytes()
    page.file_uploader[0].set_value(("mine.png", data, "image/png")).run()
    assert not page.exception
    assert not page.error
    assert html(page, "query") == ["mine.png"]  # an upload has no class
    assert page.file_uploader[0].value is None
    assert "query" not in page.query_params
    assert hits(page, "strip-")["strip-3-1"][1] == "bread/01.png"
    ask(page, "strip-3-1")
    assert html(page, "query") == ["bread/01.png class bread"]


def test_the_server_does_not_keep_what_was_uploaded(page, photo_folder, monkeypatch):
    kept = []

    def manager(endpoint: str) -> MemoryUploadedFileManager:
        kept.append(MemoryUploadedFileManager(endpoint))
        return kept[-1]

    monkeypatch.setattr(runner, "MemoryUploadedFileManager", manager)
    data = (photo_folder / "bread" / "01.png").read_bytes()
    page.file_uploader[0].set_value(("mine.png", data, "image/png")).run()
    assert html(page, "query") == ["mine.png"]
    assert [list(files.file_storage.values()) for files in kept] == [[{}]]


@pytest.mark.parametrize(
    ("tab", "lands_on"),
    [("search", "search"), ("choose", "choose"), ("corpus", "search"), ("eval", "search")],
)
def test_an_image_is_taken_on_every_tab_and_its_answer_seen(page, photo_folder, tab, lands_on):
    turn_to(page, tab)
    data = (photo_folder / "bread" / "01.png").read_bytes()
    (uploader,) = page.file_uploader
    uploader.set_value(("mine.png", data, "image/png")).run()
    assert not page.exception
    assert page.session_state["view"] == PAGES[lands_on]
    answered = {"search": "strip-3-1", "choose": "chosen-1-1"}[lands_on]
    assert hits(page, "")[answered][1] == "bread/01.png"


def test_an_upload_that_is_too_large_is_refused_where_it_was_sent(page, monkeypatch):
    monkeypatch.setattr("app.page.pictures.MAX_UPLOAD_BYTES", 3)
    turn_to(page, "choose")
    page.file_uploader[0].set_value(("mine.png", b"text", "image/png")).run()
    assert "at most 3 please" in page.error[0].value


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            b"text",
            "This cannot be used as a query: not a readable image: cannot identify image file",
        ),
        (b"", "This cannot be used as a query: not a readable image: the file is empty"),
    ],
)
def test_an_unreadable_upload_is_one_friendly_line(page, data, line):
    page.file_uploader[0].set_value(("mine.png", data, "image/png")).run()
    assert not page.exception
    assert [error.value for error in page.error] == [line]
    press(page, "another")
    assert not page.error


def test_an_upload_that_is_too_large_is_one_friendly_line(page, monkeypatch):
    monkeypatch.setattr("app.page.pictures.MAX_UPLOAD_BYTES", 3)
    page.file_uploader[0].set_value(("mine.png", b"text", "image/png")).run()
    assert not page.exception
    assert [error.value for error in page.error] == [
        "mine.png: the file has 4 bytes; at most 3 please"
    ]
    assert html(page, "query") == ["apple/00.png class apple"]
    assert not page.run().error


def test_an_upload_of_too_many_pixels_is_one_friendly_line(page, photo_folder, monkeypatch):
    monkeypatch.setattr("app.page.pictures.MAX_UPLOAD_PIXELS", 400)
    data = (photo_folder / "bread" / "01.png").read_bytes()
    page.file_uploader[0].set_value(("mine.png", data, "image/png")).run()
    assert not page.exception
    assert [error.value for error in page.error] == [
        "mine.png: the image has 24 x 20 pixels; at most 400 altogether please, so send a smaller "
        "copy"
    ]
    assert html(page, "query") == ["apple/00.png class apple"]


def test_more_hits_are_not_another_question_and_the_query_is_not_decoded_again(page, monkeypatch):
    monkeypatch.setattr(Retriever, "search", None)
    monkeypatch.setattr("app.page.pictures.portrait", None)
    page.slider(key="k").set_value(9).run()
    assert not page.exception
    assert len(html(page, "cell")) == 36


def test_nothing_is_embedded_again_when_the_page_is_drawn_again(page, monkeypatch):
    monkeypatch.setattr(Retriever, "search", None)
    monkeypatch.setattr(ImageIndex, "open", None)
    page.run()
    assert not page.exception
    assert titles(page) == ["S", "M", "L", "XL"]


def test_images_that_vanished_are_said_to_be_gone(open_page, place, photo_folder):
    for path in (photo_folder / "cheese").iterdir():
        path.unlink()
    page = open_page("--index", place / "i.index", "--encoder", place / "encoder")
    page.slider(key="k").set_value(12).run()
    assert not page.exception
    assert any(text.endswith("is gone or has changed") for text in html(page, "gone"))
    page = open_page("--index", place / "i.index", "--encoder", place / "encoder", query="8")
    assert "is no longer in" in page.error[0].value
