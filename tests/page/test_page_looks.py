from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from app.page import chart, looks
from app.page.looks import plain


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def pairs() -> list[tuple[str, str, str]]:
    """Name, light and dark colour of everything the style sheet writes text with."""
    style = looks.STYLE.read_text(encoding="utf-8")
    return re.findall(r"--mv-(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)


@pytest.mark.parametrize(("name", "light", "dark"), pairs())
def test_colours_can_be_told_from_both_backgrounds(name, light, dark):
    wanted = 4.5 if name in ("good", "bad", "trained", "blue", "name") else 3  # text, and mere bars
    assert contrast(light, "#ffffff") >= wanted
    assert contrast(dark, "#171614") >= wanted


def mixed(colour: str, with_other: str, share: float) -> str:
    """What `color-mix` makes of two colours, as a colour."""
    parts = [
        round(share * int(colour[i : i + 2], 16) + (1 - share) * int(with_other[i : i + 2], 16))
        for i in (1, 3, 5)
    ]
    return "#" + "".join(f"{part:02x}" for part in parts)


def tints() -> list[tuple[str, str, float]]:
    """Light and dark colour of text that stands on a tint of itself, and how strong that is."""
    style = looks.STYLE.read_text(encoding="utf-8")
    found = re.findall(
        r"(?<!-)color: var\(--mv-(\w+)\); background: color-mix\(in srgb, var\(--mv-(\w+)\) (\d+)%",
        style,
    )
    known = {name: (light, dark) for name, light, dark in pairs()}
    assert all(text == tint for text, tint, _ in found)
    return [(*known[text], int(percent) / 100) for text, _, percent in found]


def test_text_can_be_told_from_a_tint_of_itself():
    assert len(tints()) == 3
    for light, dark, share in tints():
        assert contrast(light, mixed(light, "#ffffff", share)) >= 4.5
        assert contrast(dark, mixed(dark, "#171614", share)) >= 4.5


def test_marks_of_the_chart_can_be_told_from_both_backgrounds():
    colours = re.findall(r'"(#\w{6})"', Path(chart.__file__).read_text(encoding="utf-8"))
    assert len(colours) == 4
    for colour in colours:
        assert min(contrast(colour, "#ffffff"), contrast(colour, "#171614")) >= 3


def test_there_are_colours_to_check():
    assert {name for name, _, _ in pairs()} >= {"good", "bad", "trained", "blue", "name"}


def test_both_themes_are_named_for_streamlit():
    options = looks.theme_options()
    assert "--theme.light.primaryColor" in options
    assert "--theme.dark.primaryColor" in options
    assert len(options) % 2 == 0


def test_nothing_is_fetched_from_elsewhere():
    for text in (looks.STYLE.read_text(encoding="utf-8"), looks.script()):
        assert not re.search(r"https?:|//\w+\.\w+|@import|url\(", text)


def test_the_sign_is_a_small_picture():
    assert looks.icon().count("<rect ") == 8
    assert ElementTree.fromstring(looks.icon()).get("viewBox") == "0 0 64 64"


JOINER = "\u2060"
RENDER = MarkdownIt("gfm-like", {"linkify": False}).render
"""Another reader of Markdown than the browser's."""


def shown(text: str) -> str:
    """What a reader sees of Markdown that is nothing but one paragraph of text."""
    (inside,) = re.findall(r"\A<p>(.*)</p>\n\Z", RENDER(text))
    assert "<" not in inside, inside
    return html.unescape(inside).replace(JOINER, "")


NASTY = [
    "![](https://evil.example/p.png)", "[a](https://b.example)", "<img src=x>", "&lt;b&gt;",
    "**bold** _slanted_ ~~gone~~ `code`", "# heading", "- item", "+ item", "1. item", "2) item",
    "> quoted", "a\\*b", "tail\\", "| a | b |", "C:\\photos\\a.png", "=====", "---", "***",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_markdown_shows_foreign_text_as_it_is(text):
    assert shown(plain(text)) == text


@given(st.text(alphabet="ab1 \\`*_{}[]<>()#!|$~&:;.,-+='\"/@^%", min_size=1))
def test_no_mix_of_signs_is_markup(text):
    words = " ".join(text.split())
    if words:
        assert shown(plain(text)) == words


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        (":smile: and :+1:", r":[\w+-]+:"),
        (":material/home:", r":material/"),
        ("see https://evil.example/a", r"https?://"),
        ("see www.evil.example", r"www\.\w"),
        ("me@evil.example", r"\w@\w"),
        (" a -> b <- c", r"->|<-"),
    ],
)
def test_what_is_looked_for_in_the_text_itself_is_not_found(text, pattern):
    assert re.search(pattern, text)
    assert not re.search(pattern, html.unescape(RENDER(plain(text))))


@pytest.mark.parametrize("text", [":red[a]", ":blue-background[b]", "$x$", "a:b"])
def test_streamlits_own_signs_are_escaped(text):
    for sign in ":[$":
        assert not re.search(rf"(?<!\\){re.escape(sign)}", plain(text))


def test_ordinary_text_stays_readable():
    text = "the file has 4 bytes; at most 3 please: 1,234 of apple/00.png"
    assert plain(text) == text


def test_an_error_becomes_one_line():
    assert plain(ValueError("wanted\n  a*b")) == "wanted a\\*b"
    assert plain(FileNotFoundError(2, "No such file", "a_b.png")) == "a\\_b.png: No such file"
