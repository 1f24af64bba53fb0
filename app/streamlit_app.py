"""The page: one query, several encoder sizes side by side. Started by `matvit app INDEX`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import streamlit as st

from app.demo import INDEX
from app.options import DEMO, encoder_name
from app.page import corpus, looks, visit
from app.page.choose import draw_choose
from app.page.corpus import draw_corpus, draw_welcome, is_built
from app.page.evaluate import draw_evaluate, take_judged
from app.page.looks import plain
from app.page.map import draw_map
from app.page.measured import find_measured
from app.page.opened import Opened, Stamp, encoder_stamp, open_all, out_of_the_collector, stamp
from app.page.search import draw_search, draw_unseen_said, draw_unseen_uploader
from app.page.visit import Shown
from indexing import ImageIndex
from matvit import Encoder, load_encoder


def main() -> None:
    """Draw the page."""
    st.set_page_config("MatViT Retrieval", looks.icon(), layout="wide")
    st.html(looks.STYLE)
    st.html(looks.script(), unsafe_allow_javascript=True)
    st.title("What does a smaller encoder cost you?", anchor=False)
    given = _arguments()
    index = given.index or given.demo / INDEX
    if given.index is None and not is_built(index):
        draw_welcome(given.demo)
        return
    try:
        opened = _open(index, given.encoder)
    except (ValueError, OSError) as error:
        st.error(plain(error))
        return
    _draw(opened, index, given.report or index.parent / "report" / "report.json")


def _draw(opened: Opened, index: Path, report: Path) -> None:
    take_judged()
    judged = st.session_state.get("judged")
    own = None if judged is None else judged.frontier
    found = find_measured(opened.retriever, opened.tuned, report, own)
    shown = Shown(opened=opened, found=found)
    wrong = visit.begin(shown, index.name)
    st.markdown(corpus.banner(opened.info))
    if wrong:
        st.warning(f"Some of this link was left out: {plain('; '.join(wrong))}.")
    if refused := st.session_state.pop("refused", None):
        st.error(refused)
    views: dict[str, Callable[[], None]] = {
        visit.SEARCH: partial(draw_search, shown),
        visit.CHOOSE: partial(draw_choose, shown),
        visit.CORPUS: partial(draw_corpus, shown),
        visit.EVALUATE: partial(draw_evaluate, shown),
        visit.MAP: partial(draw_map, shown),
    }
    tabs = st.tabs(list(views), key="view", on_change="rerun")
    for tab, draw in zip(tabs, views.values(), strict=True):
        if tab.open:
            with tab:
                draw()
    if not tabs[0].open:
        draw_unseen_uploader(shown)
    draw_unseen_said(shown)
    visit.write_address(index.name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--index", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--encoder")
    parser.add_argument("--demo", type=Path, default=DEMO)
    return parser.parse_known_args(sys.argv[1:])[0]


def _open(index: Path, encoder: str | None) -> Opened:
    """Open the index once for all visitors, and again whenever it or its encoder has changed."""
    # One that is named is a folder where somebody may train; a bundled one stays what it is.
    weights = () if encoder is None else encoder_stamp(Path(encoder))
    return _opened(str(index), encoder, stamp(index), weights)


@st.cache_resource(max_entries=1, show_spinner="Opening the index …")
def _opened(
    path: str,
    encoder: str | None,
    state: Stamp,  # noqa: ARG001
    weights: Stamp,
) -> Opened:
    index = ImageIndex.open(path)
    name = encoder_name(index.path, index.info()["encoder"]["name"], encoder)
    return open_all(index, _encoder(name, weights))


@st.cache_resource(max_entries=1, show_spinner="Loading the encoder …")
def _encoder(name: str, weights: Stamp) -> Encoder:  # noqa: ARG001
    encoder = load_encoder(name)
    out_of_the_collector()
    return encoder


main()
