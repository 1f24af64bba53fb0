"""What is in the index, what could not be read, and what the index is."""

from __future__ import annotations

import streamlit as st

from app.page import corpus_facts
from app.page.plain import plain
from app.page.search_view import ask_button, draw_picture
from app.page.session import Shown

_SAMPLED = 24


def draw_corpus(shown: Shown) -> None:
    """Draw counts, a sample, failures, and facts about the index."""
    info = shown.opened.info
    numbers = {
        "images": f"{info['images']:,}",
        "not readable": f"{info['failures']:,}",
        "classes": "none" if info["classes"] is None else f"{info['classes']:,}",
        "on disk": corpus_facts.size(info["bytes"]),
    }
    with st.grid(len(numbers), min_column_width=150, key="numbers"):
        for name, value in numbers.items():
            st.metric(name, value, border=True)
    _draw_sample(shown)
    left, right = st.columns(2, gap="large")
    with left:
        _draw_failures(shown)
    with right:
        st.subheader("What this index is", anchor=False)
        facts = {name: plain(value) for name, value in corpus_facts.facts(info)}
        st.table(facts, border="horizontal")


def _draw_sample(shown: Shown) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("Some of the images", anchor=False)
        st.button("Others", icon=":material/shuffle:", key="others", on_click=_draw_lots)
    seed = st.session_state.setdefault("lot", 0)
    index = shown.opened.index
    with st.grid(12, min_column_width=92, key="gallery"):
        for number in corpus_facts.sample(index, _SAMPLED, seed):
            path = index.paths[int(index.rows_of(number))]  # type: ignore[arg-type]
            with st.container(key=f"hit-gallery-{number}", gap=None):
                draw_picture(shown.opened.pictures.of(number).data, path, path)
                ask_button(number, path, key=f"gallery-{number}")


def _draw_lots() -> None:
    st.session_state.lot += 1


def _draw_failures(shown: Shown) -> None:
    failures = shown.opened.index.failures
    st.subheader("What could not be read", anchor=False)
    if not failures:
        st.caption("Every image of the corpus could be read.")
        return
    reasons = shown.opened.info["failures_by_error"]
    st.caption(", ".join(f"{count:,} {plain(error)}" for error, count in reasons.items()))
    pages = corpus_facts.pages(failures)
    page = st.session_state.get("failures", 1)
    st.dataframe(
        corpus_facts.failures_table(failures, min(page, pages)), hide_index=True, width="stretch"
    )
    if pages > 1:
        st.pagination(pages, key="failures")
