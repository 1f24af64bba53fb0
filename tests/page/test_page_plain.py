from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from app.page.plain import plain

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
