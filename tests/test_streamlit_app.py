"""The page, run by Streamlit's own test harness."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import streamlit as st
import torch
from photo_index import tune
from streamlit.testing.v1 import AppTest

from app.page.opened import open_all
from indexing import Corpus, ImageIndex
from matvit.extract import extract, save_extracted
from matvit.model import MatViT
from retrieval import Retriever, evaluate

PAGE = Path(__file__).parent.parent / "app" / "streamlit_app.py"
PAGES = {"search": "Search", "choose": "Choose a size", "corpus": "Corpus", "eval": "Evaluate"}


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


@pytest.fixture(scope="module")
def reports() -> list[str]:
    return []


def measure(retriever: Retriever, queries: Path) -> str:
    sizes = ["S", "M", "L", "1xS,1xXL"]
    return evaluate(retriever, Corpus.open(queries), sizes, k=3, latency_queries=1).to_json()


@pytest.fixture
def page(open_page, place) -> AppTest:
    return open_page("--index", place / "i.index", "--encoder", place / "encoder")


def turn_to(page: AppTest, name: str) -> AppTest:
    page.session_state["view"] = PAGES[name]
    return page.run()


def html(page: AppTest, kind: str) -> list[str]:
    """The text of every piece of HTML of a kind, its tags left out."""
    pieces = [each.value for each in page.get("html") if f'<div class="mv-{kind}"' in each.value]
    return [" ".join(re.sub(r"<[^>]*>", " ", piece).split()) for piece in pieces]


def titles(page: AppTest) -> list[str]:
    """What each strip is called, in order."""
    return [head.split()[0] for head in html(page, "head")]


def press(page: AppTest, key: str) -> AppTest:
    return page.button(key=key).click().run()


def address(page: AppTest) -> dict[str, list[str]]:
    return {
        name: [value] if isinstance(value, str) else value
        for name, value in page.query_params.items()
    }


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
    assert any(text.value == "All the encoder sees: 16 by 16 pixels" for text in page.caption)


def test_choosing_sizes_and_hits_changes_what_is_shown(page):
    page.pills(key="sizes").set_value(["M"])
    page.slider(key="k").set_value(2)
    page.run()
    assert titles(page) == ["M"]
    assert len(html(page, "cell")) == 2
    page.pills(key="sizes").set_value([]).run()
    assert titles(page) == ["XL"]  # something has to answer


def test_a_hit_can_be_asked_with(page):
    found = page.button(key="ask-strip-3-2").label.removeprefix("Ask with ")
    press(page, "ask-strip-3-2")
    assert not page.exception
    assert html(page, "query")[0].startswith(found)
    others = [button.label for button in page.button if button.key.startswith("ask-")]
    assert f"Ask with {found}" not in others


def test_another_image_of_the_index_asks(page, monkeypatch):
    monkeypatch.setattr("app.page.session.random.choice", lambda ids: ids[7])
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
    assert [button.label for button in page.button if button.key == "ask-strip-3-1"] == [
        "Ask with bread/01.png"
    ]
    press(page, "ask-strip-3-1")
    assert html(page, "query") == ["bread/01.png class bread"]


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
    monkeypatch.setattr("app.page.query.MAX_UPLOAD_BYTES", 3)
    page.file_uploader[0].set_value(("mine.png", b"text", "image/png")).run()
    assert not page.exception
    assert [error.value for error in page.error] == [
        "mine.png: the file has 4 bytes; at most 3 please"
    ]
    assert html(page, "query") == ["apple/00.png class apple"]
    assert not page.run().error


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


# The choice of a size


def test_the_frontier_is_drawn_from_the_report_beside_the_index(page):
    turn_to(page, "choose")
    assert not page.exception
    assert len(page.get("vega_lite_chart") or page.get("arrow_vega_lite_chart")) == 1
    assert any("from report/report.json · 12 queries" in text.value for text in page.caption)


def test_the_budget_chooses_the_best_that_it_buys(page):
    turn_to(page, "choose")
    budget = page.slider(key="budget")
    budget.set_value(budget.max).run()
    report = json.loads(Path("report/report.json").read_text())
    dearest = [point["submodel"] for point in report["points"] if point["pareto"]][-1]
    assert html(page, "card")[0].split()[0] == dearest
    budget = page.slider(key="budget")
    budget.set_value(budget.min).run()
    assert html(page, "card")[0].split()[0] == "S"
    assert page.slider(key="budget").value == budget.min


def test_a_budget_can_be_given_in_milliseconds(page):
    turn_to(page, "choose")
    page.segmented_control(key="unit").set_value("ms").run()
    assert not page.exception
    assert page.slider(key="budget").label == "At most this many ms for each query"
    budget = page.slider(key="budget")
    budget.set_value(budget.max).run()
    assert not page.exception
    assert not page.error


def test_blocks_make_a_submodel_whose_cost_is_shown_at_once(page, tiny_model):
    turn_to(page, "choose")
    assert html(page, "card")[0].startswith("S 0.00")
    page.select_slider(key="block-1").set_value("L").run()
    (card,) = html(page, "card")
    assert card.startswith("1xS,1xL 0.00")
    assert "not measured yet" in card
    assert titles(page) == ["1xS,1xL", "XL"]
    page.select_slider(key="block-1").set_value("XL").run()
    assert "overlap@3" in html(page, "card")[0] or "retained" in html(page, "card")[0]


def test_the_pick_is_asked_too_until_another_takes_its_place(page):
    turn_to(page, "choose")
    page.select_slider(key="block-0").set_value("M").run()
    turn_to(page, "search")
    assert set(titles(page)) == {"S", "M", "L", "XL", "1xM,1xS"}
    assert "1xM,1xS" in address(page)["submodel"]
    turn_to(page, "choose")
    page.select_slider(key="block-1").set_value("L").run()
    turn_to(page, "search")
    assert set(titles(page)) == {"S", "M", "L", "XL", "1xM,1xL"}


def test_sliders_show_the_pick_wherever_it_was_made(page):
    turn_to(page, "choose")
    budget = page.slider(key="budget")
    budget.set_value(budget.max).run()
    pick = html(page, "card")[0].split()[0]
    shown = [page.select_slider(key=f"block-{block}").value for block in range(2)]
    assert shown == {"XL": ["XL", "XL"], "M": ["M", "M"], "L": ["L", "L"]}.get(pick, ["S", "XL"])


def test_without_a_measurement_only_blocks_can_be_chosen(open_page, place):
    (place / "report" / "report.json").unlink()
    page = open_page("--index", place / "i.index", "--encoder", place / "encoder")
    turn_to(page, "choose")
    assert not page.exception
    assert any("matvit evaluate INDEX" in block.value for block in page.code)
    assert not page.slider
    page.select_slider(key="block-0").set_value("XL").run()
    assert titles(page) == ["1xXL,1xS", "XL"]


def test_a_report_of_another_index_is_not_shown(open_page, place, tiny_model, photo_folder):
    few = Corpus.open(photo_folder).subset(range(5))
    ImageIndex.build(tiny_model, few, place / "few.index")
    page = open_page("--index", place / "few.index", "--encoder", place / "encoder")
    turn_to(page, "choose")
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
    report = place / "report" / "report.json"
    report.write_text(measure(retriever, photo_folder))

    def is_shown(encoder: str) -> bool:
        page = open_page("--index", place / "i.index", "--encoder", place / encoder)
        turn_to(page, "choose")
        assert not page.exception
        return not page.warning

    assert (is_shown("1"), is_shown("2")) == (True, False)
    document = json.loads(report.read_text())
    del document["conditions"]["weights"]
    report.write_text(json.dumps(document))
    assert not is_shown("2")


def test_an_extracted_encoder_offers_the_one_size_it_has(open_page, place, tiny_model):
    save_extracted(extract(tiny_model, "S"), place / "small")
    page = open_page("--index", place / "i.index", "--encoder", place / "small")
    assert not page.exception
    assert not page.error
    assert titles(page) == ["S"]
    assert "· 100%" not in html(page, "head")[0]
    turn_to(page, "choose")
    assert not page.exception
    assert "nothing to choose" in page.info[0].value


# A tuned index


@pytest.fixture
def tuned_page(open_page, place, tiny_model) -> AppTest:
    tune(open_all(ImageIndex.open(place / "i.index"), tiny_model))
    return open_page("--index", place / "i.index", "--encoder", place / "encoder")


def test_a_tuned_index_shows_what_it_recommends_and_lets_queries_choose(tuned_page):
    assert not tuned_page.exception
    assert set(titles(tuned_page)) == {"S", "M", "L", "XL", "1xS,1xL", "auto"}
    heads = {head.split()[0]: head for head in html(tuned_page, "head")}
    assert "recommended" in heads["1xS,1xL"]
    # The threshold is out of reach, so the query goes on to the end and pays for both.
    assert re.match(r"auto S -?\d+\.\d\d → XL -?\d+\.\d\d ", heads["auto"])
    assert "auto" in address(tuned_page)["submodel"]


def test_the_frontier_of_a_tuned_index_is_its_own(tuned_page):
    turn_to(tuned_page, "choose")
    assert not tuned_page.exception
    assert any(
        "measured on this index by `matvit tune`" in text.value for text in tuned_page.caption
    )
    advice = " ".join(text.value for text in tuned_page.markdown)
    assert "★ Recommended: 1xS,1xL saves" in advice
    assert "**auto**: S → XL, as far as a query needs: 60% of the compute on average" in advice
    assert html(tuned_page, "card")[0].startswith("1xS,1xL 0.00")
    budget = tuned_page.slider(key="budget")
    budget.set_value(budget.max).run()
    assert html(tuned_page, "card")[0].startswith("XL 0.00")


def test_tuning_is_noticed_while_the_page_is_open(page, place, tiny_model):
    tune(open_all(ImageIndex.open(place / "i.index"), tiny_model))
    page.run()
    assert not page.exception
    assert "auto" in page.pills(key="sizes").options
    page.pills(key="sizes").set_value(["auto"]).run()
    assert titles(page) == ["auto"]
    (place / "i.index" / "tuning.json").unlink()
    page.run()
    assert not page.exception
    assert titles(page) == ["XL"]


def test_a_tuning_that_is_damaged_is_one_friendly_line(open_page, place):
    (place / "i.index" / "tuning.json").write_text("{")
    (place / "report" / "report.json").unlink()
    page = open_page("--index", place / "i.index", "--encoder", place / "encoder")
    assert not page.exception
    turn_to(page, "choose")
    assert not page.exception
    assert "tuning.json is damaged" in page.warning[0].value


# The corpus


def test_the_corpus_is_counted_shown_and_described(page, tiny_model):
    turn_to(page, "corpus")
    assert not page.exception
    assert {each.label: each.value for each in page.metric} | {"on disk": ""} == {
        "images": "12", "not readable": "0", "classes": "3", "on disk": "",
    }  # fmt: skip
    sampled = {button.label for button in page.button if button.key.startswith("ask-gallery")}
    assert len(sampled) == 12
    assert any("Every image of the corpus could be read" in text.value for text in page.caption)
    assert tiny_model.fingerprint in str(page.table[0].value)


def test_an_image_of_the_gallery_is_asked_with_on_the_first_tab(page):
    turn_to(page, "corpus")
    press(page, "ask-gallery-5")
    assert address(page)["query"] == ["5"]
    assert titles(page) == ["S", "M", "L", "XL"]


def test_other_images_can_be_drawn(open_page, place, monkeypatch):
    monkeypatch.setattr("app.page.corpus_view._SAMPLED", 4)
    page = open_page("--index", place / "i.index", "--encoder", place / "encoder")
    turn_to(page, "corpus")
    first = [button.key for button in page.button]
    press(page, "others")
    assert len(first) == len(page.button) == 5
    assert first != [button.key for button in page.button]


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


# Evaluating


def test_a_folder_is_evaluated_and_the_numbers_can_be_taken_home(page, photo_folder):
    turn_to(page, "eval")
    page.text_input[0].set_value(str(photo_folder))
    page.text_input[1].set_value("S,M")
    page.number_input[0].set_value(3)
    page.button[0].click().run()
    assert not page.exception
    assert not page.error
    assert [row["submodel"] for _, row in page.dataframe[0].value.iterrows()] == ["S", "M", "XL"]
    assert [each.label for each in page.get("download_button")] == [
        "report.csv", "report.json", "frontier.png",
    ]  # fmt: skip
    turn_to(page, "choose")
    assert any("measured on this page" in text.value for text in page.caption)


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
    page.text_input[0].set_value(queries)
    page.text_input[1].set_value(sizes)
    page.button[0].click().run()
    assert not page.exception
    (error,) = page.error
    assert line in error.value
    assert "\n" not in error.value


# Links, other visitors, other generations


def test_what_is_shown_is_in_the_address(page):
    page.pills(key="sizes").set_value(["S", "XL"]).run()
    assert address(page) == {
        "index": ["i.index"], "query": ["0"], "submodel": ["S", "XL"], "k": ["6"],
    }  # fmt: skip


def test_a_link_shows_what_it_says(open_page, place):
    page = open_page(
        "--index", place / "i.index", "--encoder", place / "encoder",
        index="i.index", query="4", submodel=["M", "1xS,1xL"], k="2",
    )  # fmt: skip
    assert not page.exception
    assert not page.warning
    assert set(titles(page)) == {"M", "1xS,1xL"}
    assert html(page, "query")[0].startswith("bread/01.png")
    assert len(html(page, "cell")) == 4
    turn_to(page, "choose")
    assert html(page, "card")[0].startswith("1xS,1xL")
    assert [page.select_slider(key=f"block-{block}").value for block in range(2)] == ["S", "L"]


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"query": "999"}, "there is no image '999'"),
        ({"query": "x"}, "there is no image 'x'"),
        ({"submodel": ["huge", "S"]}, "unknown size 'huge'"),
        ({"submodel": "auto"}, "auto needs a tuned index"),
        ({"k": "-3"}, "k is from 1 to 12"),
        ({"index": "../../etc", "query": "3"}, "it is about the index '../../etc'"),
    ],
)
def test_what_a_link_says_in_vain_is_one_friendly_line_once(open_page, place, said, complaint):
    page = open_page("--index", place / "i.index", "--encoder", place / "encoder", **said)
    assert not page.exception
    (warning,) = page.warning
    assert complaint in warning.value
    assert address(page)["index"] == ["i.index"]
    assert address(page)["query"] == ["0"]
    assert not page.run().warning


def test_going_back_in_the_browser_shows_what_was_shown(page):
    before = address(page)
    press(page, "ask-strip-0-1")
    assert address(page)["query"] != before["query"]
    for name, values in before.items():
        page.query_params[name] = values
    page.run()
    assert html(page, "query")[0].startswith("apple/00.png")


def test_two_visitors_do_not_disturb_each_other(open_page, place):
    first, second = (
        open_page("--index", place / "i.index", "--encoder", place / "encoder") for _ in range(2)
    )
    first.pills(key="sizes").set_value(["M"]).run()
    press(first, "ask-strip-0-1")
    second.run()
    assert titles(second) == ["S", "M", "L", "XL"]
    assert address(second)["query"] == ["0"]
    assert titles(first) == ["M"]


def test_an_index_that_changed_is_opened_again(page, place, tiny_model, photo_folder):
    index = ImageIndex.open(place / "i.index")
    index.remove([0])
    page.run()
    assert not page.exception
    assert "**11 images**" in page.markdown[0].value
    assert not html(page, "query")[0].startswith("apple/00.png")  # what asked was removed
    (photo_folder / "apple" / "zz.png").write_bytes(
        (photo_folder / "bread" / "01.png").read_bytes()
    )
    index.add(tiny_model, Corpus.open(photo_folder))
    page.run()
    assert not page.exception
    assert f"**{len(index)} images**" in page.markdown[0].value


# Without an index


def test_without_an_index_the_page_says_how_to_make_one(open_page):
    page = open_page()
    assert not page.exception
    assert page.info[0].value == "There is no index yet."
    assert any("matvit index build" in block.value for block in page.code)
    assert [button.label for button in page.button] == ["Build the demo"]


def test_the_demo_is_built_by_a_button(open_page, monkeypatch, tiny_model, photo_folder):
    def small_demo(model, out, images, *, progress):
        ImageIndex.build(tiny_model, Corpus.open(photo_folder), out / "demo.index")

    page = open_page()
    Path("matvit-demo").mkdir()
    monkeypatch.setattr("app.page.welcome_view.run_demo", small_demo)
    page.button[0].click().run()
    assert not page.exception
    # Nobody has bundled this encoder, so the page that opens says where it would have to be.
    assert "was built by encoder 'tiny', which is not bundled" in page.error[0].value


def test_a_demo_that_cannot_be_built_is_one_friendly_line(open_page):
    page = open_page()
    Path("matvit-demo").write_text("in the way")
    page.button[0].click().run()
    assert not page.exception
    assert "matvit-demo holds something else" in page.error[0].value


def test_an_index_that_cannot_be_opened_is_one_friendly_line(open_page, tmp_path):
    page = open_page("--index", tmp_path / "gone.index")
    assert not page.exception
    assert "gone.index" in page.error[0].value


def test_a_damaged_index_is_one_friendly_line(open_page, place):
    (place / "i.index" / "manifest.json").write_text("{")
    (place / "i.index" / "manifest.json.prev").unlink(missing_ok=True)
    page = open_page("--index", place / "i.index", "--encoder", place / "encoder")
    assert not page.exception
    assert len(page.error) == 1
