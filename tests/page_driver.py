"""What the tests of the page do with it, and what they read from it."""

from __future__ import annotations

import re
from functools import partial
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

from streamlit.runtime.scriptrunner import RerunData
from streamlit.testing.v1 import AppTest

from indexing import Corpus
from retrieval import Retriever, evaluate

PAGES = {
    "search": "Search", "choose": "Choose a size", "corpus": "Corpus", "eval": "Evaluate",
    "map": "Map",
}  # fmt: skip


def measure(retriever: Retriever, queries: Path) -> str:
    sizes = ["S", "M", "L", "1xS,1xXL"]
    return evaluate(retriever, Corpus.open(queries), sizes, k=3, latency_queries=1).to_json()


def turn_to(page: AppTest, name: str) -> AppTest:
    page.session_state["view"] = PAGES[name]
    return page.run()


def html(page: AppTest, kind: str) -> list[str]:
    """The text of every piece of HTML of a kind, its tags left out."""
    reader = _Pieces(f"mv-{kind}")
    for each in page.get("html"):
        reader.feed(each.value)
    return [" ".join(" ".join(words).split()) for words in reader.pieces]


class _Pieces(HTMLParser):
    """Collects what is written in each `div` of a class."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.depth = name, 0
        self.pieces: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div" and self.depth:
            self.depth += 1
        elif tag == "div" and self.name in (dict(attrs).get("class") or "").split():
            self.depth = 1
            self.pieces.append([])

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "div" and self.depth > 0

    def handle_data(self, data: str) -> None:
        if self.depth:
            self.pieces[-1].append(data)


def hits(page: AppTest, at: str) -> dict[str, tuple[str, str]]:
    """What the button over each hit says to the server and to people, by the hit's place.

    Args:
        page: The page.
        at: How the place begins: `strip-3-` for the fourth strip.
    """
    drawn = "".join(each.value for each in page.get("html"))
    found = re.findall(
        r'data-place="([^"]+)">.*?class="mv-ask" data-say="([^"]+)"><span>Ask with (.*?)</span>',
        drawn,
    )
    return {place: (said, unescape(name)) for place, said, name in found if place.startswith(at)}


def say(page: AppTest, said: str) -> AppTest:
    """Hand on what a button of a hit says, as the script of the page does."""
    return page.text_input(key="said").set_value(said).run()


def ask(page: AppTest, place: str) -> AppTest:
    """Ask with the hit at a place, such as `strip-3-1`."""
    return say(page, hits(page, place)[place][0])


def titles(page: AppTest) -> list[str]:
    """What each strip is called, in order."""
    return [head.split()[0] for head in html(page, "head")]


def press(page: AppTest, key: str) -> AppTest:
    return page.button(key=key).click().run()


def go_back(page: AppTest, to: dict[str, list[str]]) -> AppTest:
    """Press the browser's button: it tells the server that it went through its history."""
    page.query_params = dict(to)
    went = partial(RerunData, is_history_navigation=True)
    with mock.patch("streamlit.testing.v1.local_script_runner.RerunData", went):
        return page.run()


def address(page: AppTest) -> dict[str, list[str]]:
    return {
        name: [value] if isinstance(value, str) else value
        for name, value in page.query_params.items()
    }
