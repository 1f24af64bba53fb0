"""The tab that chooses a size, without and with a tuned index."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from page_driver import address, html, measure, titles, turn_to
from photo_index import tune
from streamlit.testing.v1 import AppTest

from app.page.opened import open_all
from indexing import Corpus, ImageIndex
from matvit import AnchoredMatViT
from matvit.extraction import extract
from matvit.loading import save_encoder
from matvit.model import MatViT
from retrieval import ParetoFrontier, Retriever


def test_the_frontier_is_drawn_from_the_report_beside_the_index(page):
    turn_to(page, "choose")
    assert not page.exception
    assert len(page.get("vega_lite_chart") or page.get("arrow_vega_lite_chart")) == 1
    assert any("From report/report.json · 12 queries" in text.value for text in page.caption)


def test_the_budget_chooses_the_best_that_it_buys(page, shared_place):
    turn_to(page, "choose")
    budget = page.slider(key="budget")
    budget.set_value(budget.max).run()
    report = json.loads((shared_place / "report" / "report.json").read_text())
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


def test_another_unit_keeps_the_pick_and_shows_what_it_costs(page, shared_place):
    turn_to(page, "choose")
    costs = {
        point["submodel"]: {"GMACs": point["macs"] / 1e9, "ms": point["latency_ms_p50"]}
        for point in json.loads((shared_place / "report" / "report.json").read_text())["points"]
    }
    for pick in ("L", "1xS,1xXL"):
        page.selectbox(key="listed").set_value(pick).run()
        for unit in ("ms", "GMACs"):
            page.segmented_control(key="unit").set_value(unit).run()
            assert html(page, "card")[0].split()[0] == pick
            budget = page.slider(key="budget")
            assert budget.label == f"At most this many {unit} for each query"
            wanted = min(budget.max, max(budget.min, costs[pick][unit]))
            assert wanted - 1e-9 <= budget.value <= wanted + budget.step


def test_another_unit_keeps_a_pick_that_was_not_measured(page):
    turn_to(page, "choose")
    page.select_slider(key="block-0").set_value("L").run()
    page.segmented_control(key="unit").set_value("ms").run()
    assert not page.exception
    assert html(page, "card")[0].startswith("1xL,1xS")


def test_what_was_measured_is_listed_for_those_who_cannot_click(page):
    turn_to(page, "choose")
    listed = page.selectbox(key="listed")
    assert [name.split(" · ")[0] for name in listed.options] == ["S", "M", "L", "1xS,1xXL", "XL"]
    assert all(re.fullmatch(r".* · 0\.00\d GMACs · \d.*", name) for name in listed.options)
    assert listed.value == "S"
    listed.set_value("1xS,1xXL").run()
    assert html(page, "card")[0].startswith("1xS,1xXL")
    assert [page.select_slider(key=f"block-{block}").value for block in range(2)] == ["S", "XL"]
    page.select_slider(key="block-0").set_value("L").run()
    assert page.selectbox(key="listed").value is None
    assert html(page, "card")[0].startswith("1xL,1xXL")


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


def test_tokens_are_merged_at_any_width_and_the_schedule_of_a_pick_is_kept(page):
    turn_to(page, "choose")
    assert not page.toggle(key="block-merge").value
    page.toggle(key="block-merge").set_value(True).run()
    (card,) = html(page, "card")
    assert card.startswith("S~ 0.00")
    assert "patches merged" in card
    assert titles(page) == ["S~", "XL"]
    page.select_slider(key="block-1").set_value("L").run()
    assert html(page, "card")[0].startswith("1xS,1xL~ 0.00")
    page.toggle(key="block-merge").set_value(False).run()
    assert html(page, "card")[0].startswith("1xS,1xL 0.00")
    assert "merged" not in html(page, "card")[0]


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
        nested = MatViT(tiny_model.config, tiny_model.preprocess, "converted")
        converted = AnchoredMatViT.join(nested, tiny_model)
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
    save_encoder(extract(tiny_model, "S"), place / "small")
    page = open_page("--index", place / "i.index", "--encoder", place / "small")
    assert not page.exception
    assert not page.error
    assert titles(page) == ["S"]
    assert "· 100%" not in html(page, "head")[0]
    turn_to(page, "choose")
    assert not page.exception
    assert "nothing to choose" in page.info[0].value


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
        "Measured on this index by `matvit tune`" in text.value for text in tuned_page.caption
    )
    advice = " ".join(text.value for text in tuned_page.markdown)
    assert "★ Recommended: 1xS,1xL saves" in advice
    assert "**auto**: S → XL, as far as a query needs: 60% of the compute on average" in advice
    assert html(tuned_page, "card")[0].startswith("1xS,1xL 0.00")
    budget = tuned_page.slider(key="budget")
    budget.set_value(budget.max).run()
    assert html(tuned_page, "card")[0].startswith("XL 0.00")


def test_a_budget_picks_what_the_command_picks(open_page, place, tiny_model, monkeypatch):
    """Queries that choose and queries that tell disagree here, in GMACs as in milliseconds."""
    opened = open_all(ImageIndex.open(place / "i.index"), tiny_model)
    stored = tune(opened)
    found = {"S": (0.9, 5.0), "1xS,1xL": (0.85, 4.0), "XL": (1.0, 9.0)}
    selection = [replace(each, overlap_at_k=found[each.submodel][0]) for each in stored.selection]
    told = [replace(each, latency_ms_p50=found[each.submodel][1] + 1) for each in stored.frontier]
    stored = replace(stored, selection=ParetoFrontier(selection), frontier=ParetoFrontier(told))
    stored.store()
    monkeypatch.setattr(
        "retrieval.speed.measured_ms",
        lambda encoder, submodels, **_: {each: found[each][1] for each in submodels},
    )
    page = open_page("--index", place / "i.index", "--encoder", place / "encoder")
    turn_to(page, "choose")
    for unit, option in (("GMACs", "max_gmacs"), ("ms", "max_ms")):
        page.segmented_control(key="unit").set_value(unit).run()
        budget = page.slider(key="budget")
        picked = set()
        for limit in (budget.max, budget.min, (budget.min + budget.max) / 2):
            page.slider(key="budget").set_value(limit).run()
            chosen = str(stored.choose(**{option: page.slider(key="budget").value}))
            (card,) = html(page, "card")
            assert card.split()[0] == chosen
            assert f"overlap@10 {stored.frontier.point_of(chosen).overlap_at_k:.4f}" in card
            picked.add(chosen)
        assert picked == ({"S", "XL"} if unit == "GMACs" else {"1xS,1xL", "S", "XL"})


def test_tuning_is_noticed_while_the_page_is_open(own_page, place, tiny_model):
    tune(open_all(ImageIndex.open(place / "i.index"), tiny_model))
    own_page.run()
    assert not own_page.exception
    assert "auto" in own_page.pills(key="sizes").options
    own_page.pills(key="sizes").set_value(["auto"]).run()
    assert titles(own_page) == ["auto"]
    (place / "i.index" / "tuning.json").unlink()
    own_page.run()
    assert not own_page.exception
    assert titles(own_page) == ["XL"]


def test_a_tuning_that_is_damaged_is_one_friendly_line(open_page, place):
    (place / "i.index" / "tuning.json").write_text("{")
    (place / "report" / "report.json").unlink()
    page = open_page("--index", place / "i.index", "--encoder", place / "encoder")
    assert not page.exception
    turn_to(page, "choose")
    assert not page.exception
    assert "tuning.json is damaged" in page.warning[0].value
