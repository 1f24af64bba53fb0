"""The tabs that show the corpus and evaluate queries."""

from __future__ import annotations

from threading import Event

import pytest
from page_driver import address, ask, hits, press, titles, turn_to

from app.page.evaluate import judge
from indexing import Corpus, ImageIndex


def test_the_corpus_is_counted_shown_and_described(page, tiny_model):
    turn_to(page, "corpus")
    assert not page.exception
    assert {each.label: each.value for each in page.metric} | {"on disk": ""} == {
        "images": "12", "not readable": "0", "classes": "3", "on disk": "",
    }  # fmt: skip
    assert len(hits(page, "gallery-")) == 12
    assert any("Every image of the corpus could be read" in text.value for text in page.caption)
    assert tiny_model.fingerprint in str(page.table[0].value)


def test_an_image_of_the_gallery_is_asked_with_on_the_first_tab(page):
    turn_to(page, "corpus")
    ask(page, "gallery-5")
    assert address(page)["query"] == ["5"]
    assert titles(page) == ["S", "M", "L", "XL"]


def test_other_images_can_be_drawn(follow_link, monkeypatch):
    monkeypatch.setattr("app.page.corpus._SAMPLED", 4)
    page = follow_link()
    turn_to(page, "corpus")
    first = hits(page, "gallery-")
    press(page, "others")
    assert len(first) == len(hits(page, "gallery-")) == 4
    assert first != hits(page, "gallery-")


def test_failures_are_listed_with_reasons_page_by_page(open_page, place, tiny_model, photo_folder):
    for number in range(25):
        (photo_folder / "apple" / f"bad{number:02}.jpg").write_text("text")
    ImageIndex.build(tiny_model, Corpus.open(photo_folder), place / "bad.index")
    page = open_page("--index", place / "bad.index", "--encoder", place / "encoder")
    assert "25 images could not be read" in page.markdown[0].value
    turn_to(page, "corpus")
    assert not page.exception
    assert "25 UnidentifiedImageError" in [text.value for text in page.caption]
    assert len(page.dataframe[0].value) == 20
    page.pagination(key="failures").set_value(2).run()
    assert page.dataframe[0].value["image"].iloc[0] == "apple/bad20.jpg"
    assert "not a readable image" in page.dataframe[0].value["reason"].iloc[0]


def evaluate(page, folder, sizes: str):
    """Fill in the form, press the button, and wait for the end of what it starts."""
    page.text_input[0].set_value(str(folder))
    page.text_input[1].set_value(sizes)
    page.number_input[0].set_value(3)
    page.button[0].click().run()
    if "judging" in page.session_state:
        page.session_state["judging"].wait()
        page.run()
    return page


def test_a_folder_is_evaluated_and_the_numbers_can_be_taken_home(page, photo_folder):
    turn_to(page, "eval")
    evaluate(page, photo_folder, "S,M")
    assert not page.exception
    assert not page.error
    assert [row["submodel"] for _, row in page.dataframe[0].value.iterrows()] == ["S", "M", "XL"]
    assert [each.label for each in page.get("download_button")] == [
        "report.csv", "report.json", "frontier.png",
    ]  # fmt: skip
    turn_to(page, "choose")
    assert any("Measured on this page" in text.value for text in page.caption)


def test_an_evaluation_survives_that_its_visitor_looks_elsewhere(page, photo_folder, monkeypatch):
    begun, go_on = Event(), Event()

    def held(*arguments):
        begun.set()
        assert go_on.wait(60)
        return judge(*arguments)

    monkeypatch.setattr("app.page.evaluate.judge", held)
    turn_to(page, "eval")
    page.text_input[0].set_value(str(photo_folder))
    page.text_input[1].set_value("S")
    page.button[0].click().run()
    assert begun.wait(60)
    assert not page.dataframe
    turn_to(page, "search")
    assert titles(page) == ["S", "M", "L", "XL"]
    go_on.set()
    page.session_state["judging"].wait()
    turn_to(page, "eval")
    assert not page.exception
    assert [row["submodel"] for _, row in page.dataframe[0].value.iterrows()] == ["S", "XL"]


def test_results_are_marked_once_the_index_has_changed(own_page, photo_folder, place):
    turn_to(own_page, "eval")
    evaluate(own_page, photo_folder, "S")
    assert not own_page.warning
    ImageIndex.open(place / "i.index").remove([0])
    own_page.run()
    assert not own_page.exception
    assert "The index has changed since" in own_page.warning[0].value
    turn_to(own_page, "choose")
    assert not any("measured on this page" in text.value for text in own_page.caption)


@pytest.mark.parametrize(
    ("queries", "sizes", "line"),
    [
        ("", "S", "a folder of query images is needed"),
        ("nowhere", "S", "nowhere"),
        (".", "huge", "unknown size 'huge'; known sizes: S, M, L, XL"),
    ],
)
def test_what_cannot_be_evaluated_is_one_friendly_line(page, queries, sizes, line):
    turn_to(page, "eval")
    evaluate(page, queries, sizes)
    assert not page.exception
    (error,) = page.error
    assert line in error.value
    assert "\n" not in error.value


def test_a_query_on_which_a_size_loses_is_compared_with_a_click(page, photo_folder):
    turn_to(page, "eval")
    evaluate(page, photo_folder, "S,M")
    judged = page.session_state["judged"].evaluation
    wanted = judged.disagreements("S")
    table = next(each for each in page.dataframe if "this size" in each.value.columns)
    assert list(table.value["query"]) == [each.path for each in wanted]
    assert list(table.value["lost"]) == pytest.approx([each.lost for each in wanted])
    page.selectbox(key="disagreeing").set_value("M").run()
    table = next(each for each in page.dataframe if "this size" in each.value.columns)
    assert list(table.value["query"]) == [each.path for each in judged.disagreements("M")]
    assert not page.exception


def test_an_index_is_tuned_from_the_page(own_page, monkeypatch):
    from app.page import tune as page_tune

    begun, go_on = Event(), Event()

    def held(opened, size, tell):
        tell(3)
        begun.set()
        assert go_on.wait(60)
        tell(4)

    monkeypatch.setattr(page_tune, "tune_opened", held)
    turn_to(own_page, "eval")
    press(own_page, "tune")
    assert begun.wait(60)
    own_page.run()
    assert any(text.value.startswith("3 submodels measured") for text in own_page.info)
    press(own_page, "stop-tuning")
    go_on.set()
    own_page.session_state["tuning"].wait()
    own_page.run()
    assert not own_page.exception
    assert any("Stopped; the next run goes on" in text.value for text in own_page.info)
