"""What the tests of the page do with it, and what they read from it."""

from __future__ import annotations

import re
from functools import partial
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
    pieces = [each.value for each in page.get("html") if f'<div class="mv-{kind}"' in each.value]
    return [" ".join(re.sub(r"<[^>]*>", " ", piece).split()) for piece in pieces]


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
