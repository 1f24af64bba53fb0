"""Links, other visitors, other generations of an index, and none at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from page_driver import address, ask, go_back, html, titles, turn_to

from indexing import Corpus, ImageIndex
from matvit.model import MatViT


def test_what_is_shown_is_in_the_address(page):
    page.pills(key="sizes").set_value(["S", "XL"]).run()
    assert address(page) == {
        "index": ["i.index"], "query": ["0"], "submodel": ["S", "XL"], "k": ["6"],
    }  # fmt: skip


def test_a_link_shows_what_it_says(follow_link):
    page = follow_link(index="i.index", query="4", submodel=["M", "1xS,1xL"], k="2")
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
def test_what_a_link_says_in_vain_is_one_friendly_line_once(follow_link, said, complaint):
    page = follow_link(**said)
    assert not page.exception
    (warning,) = page.warning
    assert complaint in warning.value
    assert address(page)["index"] == ["i.index"]
    assert address(page)["query"] == ["0"]
    assert not page.run().warning


def test_going_back_in_the_browser_shows_what_was_shown(page):
    before = address(page)
    ask(page, "strip-0-1")
    assert address(page)["query"] != before["query"]
    go_back(page, before)
    assert html(page, "query")[0].startswith("apple/00.png")
    assert address(page) == before


def test_a_click_counts_though_the_browser_knows_only_the_address_before_the_last(page):
    before = address(page)
    page.pills(key="sizes").set_value(["S", "L", "XL"]).run()
    page.query_params = dict(before)
    page.pills(key="sizes").set_value(["S", "XL"]).run()
    assert titles(page) == ["S", "XL"]
    assert address(page)["submodel"] == ["S", "XL"]


def test_two_visitors_do_not_disturb_each_other(follow_link):
    first, second = follow_link(), follow_link()
    first.pills(key="sizes").set_value(["M"]).run()
    ask(first, "strip-0-1")
    second.run()
    assert titles(second) == ["S", "M", "L", "XL"]
    assert address(second)["query"] == ["0"]
    assert titles(first) == ["M"]


def test_an_index_that_changed_is_opened_again(own_page, place, tiny_model, photo_folder):
    index = ImageIndex.open(place / "i.index").remove([0])
    own_page.run()
    assert not own_page.exception
    assert "**11 images**" in own_page.markdown[0].value
    assert not html(own_page, "query")[0].startswith("apple/00.png")  # what asked was removed
    (photo_folder / "apple" / "zz.png").write_bytes(
        (photo_folder / "bread" / "01.png").read_bytes()
    )
    index = index.add(tiny_model, Corpus.open(photo_folder))
    own_page.run()
    assert not own_page.exception
    assert f"**{len(index)} images**" in own_page.markdown[0].value


def test_an_encoder_that_was_trained_again_is_noticed(own_page, place, tiny_model):
    torch.manual_seed(1)
    MatViT(tiny_model.config, tiny_model.preprocess, "tiny").save(place / "encoder")
    own_page.run()
    assert not own_page.exception
    assert "index was built by encoder" in own_page.error[0].value
    tiny_model.save(place / "encoder")
    own_page.run()
    assert not own_page.error


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
    monkeypatch.setattr("app.page.corpus.run_demo", small_demo)
    page.button[0].click().run()
    assert not page.exception
    # Nobody has bundled this encoder, so the page that opens says where it would have to be.
    assert "was built by encoder 'tiny', which is not bundled" in page.error[0].value


def test_a_demo_that_was_interrupted_can_be_built_again(open_page):
    (Path("matvit-demo") / "demo.index").mkdir(parents=True)
    page = open_page()
    assert not page.exception
    assert not page.error
    assert [button.label for button in page.button] == ["Build the demo"]


def test_a_demo_that_another_visitor_has_built_is_opened_and_not_built_again(
    open_page, monkeypatch, tiny_model, photo_folder
):
    page = open_page()
    ImageIndex.build(tiny_model, Corpus.open(photo_folder), Path("matvit-demo") / "demo.index")
    monkeypatch.setattr("app.page.corpus.run_demo", None)
    page.button[0].click().run()
    assert not page.exception
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
