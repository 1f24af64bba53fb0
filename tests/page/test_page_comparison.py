from __future__ import annotations

from dataclasses import replace

import pytest
from photo_index import open_photos, upload

from app.page.comparison import compare, cost_of, scale_of
from app.page.opened import Opened
from app.page.pictures import Query, stored_query
from matvit.config import MatViTConfig
from matvit.cost import count_macs, count_params
from matvit.submodel import Submodel

CONFIG = MatViTConfig(img_size=64, patch_size=8, embed_dim=256, depth=6, num_heads=4)


def parse(text: str) -> Submodel:
    return Submodel.parse(text, depth=6, hidden_dim=CONFIG.hidden_dim)


@pytest.fixture
def opened(tiny_model, photo_folder, tmp_path) -> Opened:
    return open_photos(tiny_model, photo_folder, tmp_path / "i.index")


@pytest.fixture
def query(photo_folder) -> Query:
    return upload(photo_folder / "bread" / "01.png")


def test_strips_hold_each_size_against_the_full_encoder(opened, query):
    small, full = compare(opened, query, ["XL", "S"], k=4)
    assert (small.title, full.title) == ("S", "XL")  # the cheapest first
    assert full.fraction == 1 > small.fraction
    assert (full.shared, full.wanted) == (4, 4)
    assert [cell.change for cell in full.cells] == [0, 0, 0, 0]
    wanted = [hit.id for hit in opened.retriever.search(query.data, "XL", 4)]
    found = [hit.id for hit in opened.retriever.search(query.data, "S", 4)]
    assert [cell.hit.id for cell in small.cells] == found
    assert small.shared == len(set(found) & set(wanted))
    for cell in small.cells:
        place = wanted.index(cell.hit.id) + 1 if cell.hit.id in wanted else None
        assert cell.change == (None if place is None else place - cell.hit.rank)
        assert cell.picture.data is not None


def test_an_image_of_the_index_is_not_among_its_own_hits(opened):
    query = stored_query(opened.index, 3)
    for strip in compare(opened, query, ["S", "M", "XL"], k=4):
        assert 3 not in [cell.hit.id for cell in strip.cells]
        assert [cell.hit.rank for cell in strip.cells] == [1, 2, 3, 4]
    (all_others,) = compare(opened, query, ["S"], k=12)
    assert len(all_others.cells) == 11


def test_labels_are_right_or_wrong_only_where_known(opened, query):
    (known,) = compare(opened, replace(query, label="bread"), ["XL"], k=3)
    assert known.cells[0].right is True
    labels = [cell.hit.label for cell in known.cells]
    assert [cell.right for cell in known.cells] == [label == "bread" for label in labels]
    assert known.right == labels.count("bread")
    (unknown,) = compare(opened, query, ["XL"], k=3)
    assert {cell.right for cell in unknown.cells} == {None}
    assert unknown.right is None


def test_a_missing_original_costs_its_picture_and_not_the_answer(opened, query, photo_folder):
    (photo_folder / "bread" / "01.png").unlink()
    (strip,) = compare(opened, query, ["XL"], k=3)
    assert [cell.picture.data is None for cell in strip.cells] == [True, False, False]


def test_milliseconds_add_up(opened, query):
    (strip,) = compare(opened, query, ["M"], k=3)
    pictures = [opened.pictures.of(cell.hit.id) for cell in strip.cells]
    assert strip.fetch_ms == sum(picture.fetch_ms for picture in pictures)
    assert strip.total_ms == strip.answer.encode_ms + strip.answer.search_ms + strip.fetch_ms


def test_all_strips_share_one_scale(opened, query):
    strips = compare(opened, query, ["S", "XL"], k=5)
    scores = [cell.hit.score for strip in strips for cell in strip.cells]
    assert scale_of(strips) == (min(scores), max(scores))
    assert scale_of([]) == (0, 1)


def test_an_unreadable_query_and_an_unknown_size_are_errors(opened, query):
    with pytest.raises(ValueError, match="not a readable image"):
        compare(opened, Query(data=b"text", name="a"), ["S"], k=3)
    with pytest.raises(ValueError, match="unknown size 'huge'"):
        compare(opened, query, ["huge"], k=3)


def test_a_comparison_that_nobody_waits_for_ends_between_two_sizes(opened, query):
    class ReplacedError(Exception):
        pass

    asked: list[int] = []

    def give_way() -> None:
        asked.append(len(opened.answers))
        if len(asked) == 3:
            raise ReplacedError

    with pytest.raises(ReplacedError):
        compare(opened, query, ["S", "M", "L"], k=3, before_each=give_way)
    assert asked == [0, 1, 2]  # the full one and S were asked, and nothing else
    assert len(opened.answers) == 2


def test_the_cost_of_a_submodel_is_counted_and_its_widths_are_shares():
    mixed = parse("2xS,1xM,3xXL")
    cost = cost_of(CONFIG, mixed)
    assert cost.macs == count_macs(CONFIG, mixed)
    assert cost.params == count_params(CONFIG, mixed)
    assert cost.fraction == cost.macs / count_macs(CONFIG, parse("XL"))
    assert cost.widths == (0.125, 0.125, 0.25, 1, 1, 1)
    assert cost.submodel == "2xS,1xM,3xXL"
