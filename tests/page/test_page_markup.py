from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from app.page import markup
from app.page.comparison import Cell, Cost, Strip
from app.page.pictures import Picture, Query, Sight
from retrieval import Hit, Hits, OperatingPoint, ParetoFrontier, Step

HIT = Hit(rank=2, id=1, path="a.png", score=0.5)
CELL = Cell(hit=HIT, change=0, right=None, picture=Picture(data=b"jpeg", fetch_ms=0.5))
ANSWER = Hits(
    query=None, submodel="S", macs=144_000_000, encode_ms=7.0, search_ms=1.0, hits=(HIT,) * 4
)
STRIP = Strip(
    title="S",
    answer=ANSWER,
    fraction=0.45,
    wanted=6,
    cells=(CELL, CELL, CELL, replace(CELL, change=None)),
)
COST = Cost(submodel="S", macs=144_000_000, fraction=0.45, params=2_050_000, widths=(0.125, 1))
EVIL = '<img src=x onerror="alert(1)">'


def step(submodel: str, confidence: float) -> Step:
    return Step(submodel=submodel, macs=1, encode_ms=1, search_ms=1, confidence=confidence)


class Text(HTMLParser):
    """Collects what a person reads, and which tags there are."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.words.append(data)


def read(html: str) -> str:
    parser = Text()
    parser.feed(html)
    return " ".join(" ".join(parser.words).split())


def tags(html: str) -> list[str]:
    parser = Text()
    parser.feed(html)
    return parser.tags


def head(strip: Strip, *, is_full: bool = False) -> str:
    return markup.strip_head(strip, COST, ["your pick"], 20.0, is_full=is_full)


def test_the_head_of_a_strip_says_what_it_cost_and_how_far_it_agrees():
    text = read(head(STRIP))
    assert text == ("S your pick 0.144 GMACs · 45% 10.0 ms = 7.0 + 1.0 + 2.0 finds 3 of full's 6")
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", head(STRIP))]
    assert widths == [45.0, 35.0, 5.0, 10.0]  # compute; milliseconds of the slowest one's 20


def test_the_full_encoder_is_not_compared_with_itself():
    assert "of full's" not in read(head(STRIP, is_full=True))


def test_right_hits_are_counted_among_those_with_a_class():
    cells = tuple(replace(CELL, right=right) for right in (True, True, False, None))
    assert "✓ 2 of 3" in read(head(replace(STRIP, cells=cells)))


def test_the_way_of_a_query_that_chose_for_itself_is_told():
    steps = (
        step("S", 0.31),
        step("XL", 0.9),
    )
    assert "auto your pick S 0.31 → XL 0.90 0.144" in read(
        head(replace(STRIP, title="auto", answer=replace(ANSWER, submodel="XL", steps=steps)))
    )


@pytest.mark.parametrize(
    ("change", "right", "text"),
    [
        (0, None, "2 0.500 = same rank as full"),
        (3, True, "2 0.500 ▲ up 3 ✓ right class"),
        (-1, False, "2 0.500 ▼ down 1 ✗ wrong class"),
        (None, None, "2 0.500 new"),
    ],
)
def test_captions_say_rank_score_move_and_verdict(change, right, text):
    cell = replace(CELL, change=change, right=right)
    assert read(markup.cell_caption(cell, (0.0, 1.0), is_full=False)) == text


def test_hits_of_the_full_encoder_have_not_moved():
    assert read(markup.cell_caption(CELL, (0.0, 1.0), is_full=True)) == "2 0.500"


def test_a_class_is_named_unless_it_is_the_querys():
    wrong = replace(CELL, hit=replace(HIT, label="cat"), right=False)
    assert read(markup.cell_caption(wrong, (0, 1), is_full=True)).endswith("cat")
    right = replace(CELL, hit=replace(HIT, label="dog"), right=True)
    assert "dog" not in read(markup.cell_caption(right, (0, 1), is_full=True))


@pytest.mark.parametrize(
    ("scale", "width"), [((0.0, 1.0), "50.0"), ((0.4, 0.6), "50.0"), ((0.5, 0.5), "100.0")]
)
def test_the_bar_of_a_score_lies_on_the_common_scale(scale, width):
    assert f"width:{width}%" in markup.cell_caption(CELL, scale, is_full=True)


def test_the_legend_explains_verdicts_only_where_there_are_some():
    assert "✓ ✗ right or wrong class" in read(markup.legend((0.1, 0.9), labelled=True))
    plain = read(markup.legend((0.1, 0.9), labelled=False))
    assert "✓" not in plain
    assert "from 0.100 to 0.900" in plain


def test_a_cost_says_whether_it_was_measured_what_it_buys():
    point = OperatingPoint(
        submodel="S", macs=1, macs_fraction=0.45, params=1, queries=1, k=10, overlap_at_k=0.875,
        latency_ms_p50=7.25,
    )  # fmt: skip
    text = read(markup.cost_card(COST, point, ParetoFrontier([point])))
    assert text == (
        "S 0.144 GMACs · 45% of full · 2.05 M parameters overlap@10 0.8750 · 7.2 ms an image"
    )
    assert "not measured yet" in read(markup.cost_card(COST, None, None))


@pytest.mark.parametrize(
    "html",
    [
        markup.gone(EVIL),
        markup.cell_caption(
            replace(CELL, hit=replace(HIT, label=EVIL), right=False), (0, 1), is_full=False,
        ),
        markup.strip_head(replace(STRIP, title=EVIL), COST, [EVIL], 1.0, is_full=False),
        markup.strip_head(
            replace(STRIP, answer=replace(ANSWER, steps=(step(EVIL, 0),))),
            COST, [], 1.0, is_full=False,
        ),
        markup.cost_card(replace(COST, submodel=EVIL), None, None),
    ],
)  # fmt: skip
def test_names_from_files_stay_text(html):
    assert "img" not in tags(html)
    assert EVIL in read(html)


@pytest.mark.parametrize(
    "html",
    [
        markup.query_card(
            Query(data=b"", name=EVIL, label=EVIL),
            Sight(whole=b"jpeg", seen=b"png", pixels=np.zeros((4, 4, 3), np.uint8)),
        ),
        markup.hit(7, EVIL, CELL.picture, place=EVIL),
        markup.hit(7, EVIL, Picture(data=None, fetch_ms=1), place=EVIL),
    ],
    ids=["query", "hit", "gone"],
)
def test_names_beside_pictures_stay_text(html):
    parsed = Text()
    parsed.feed(html)
    assert parsed.attributes <= {
        "class", "src", "alt", "type", "data-place", "data-say",
    }  # fmt: skip
    assert EVIL in " ".join(parsed.words)


def test_a_hit_is_its_picture_and_a_button_that_says_which_it_is():
    drawn = markup.hit(
        7, "a.png", CELL.picture, place="strip-0-1", verdict="wrong", below="<i></i>"
    )
    assert 'class="mv-hit mv-wrong" data-place="strip-0-1"' in drawn
    assert f'src="data:image/jpeg;base64,{base64.b64encode(b"jpeg").decode()}" alt="a.png"' in drawn
    assert 'data-say="=7"' in drawn
    assert read(drawn) == "Ask with a.png"
    assert drawn.endswith("<i></i></div>")
    assert "img" not in tags(markup.hit(7, "a.png", Picture(data=None, fetch_ms=1), place="x"))


def test_no_span_has_a_name_that_nobody_reads_out():
    """A label is for what has a role; other elements are read by their text."""
    pieces = [
        head(STRIP),
        *(
            markup.cell_caption(replace(CELL, change=change, right=right), (0, 1), is_full=False)
            for change, right in ((2, True), (-2, False), (0, None), (None, None))
        ),
    ]
    for tag in re.findall(r"<[^>]*aria-label[^>]*>", "".join(pieces)):
        assert "role=" in tag or tag.startswith("<button")


def test_the_legend_says_what_milliseconds_leave_out():
    assert "decoding the query is not in it" in read(markup.legend((0, 1), labelled=False))
