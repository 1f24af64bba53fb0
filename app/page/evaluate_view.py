"""Evaluating on a folder of queries, and taking the numbers home."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.page import chart, judging
from app.page.plain import plain
from app.page.session import Shown
from retrieval import format_conditions

_LOOK_EVERY_S = 1.0


def draw_evaluate(shown: Shown) -> None:
    """Draw the form, and what came of it."""
    st.subheader("Measure every size on your own queries", anchor=False)
    st.markdown(
        "Name a folder on this machine with images that are **not** in the index. With classes "
        "(one folder each) hits are judged right or wrong; without, by how many of the full "
        "encoder's hits a smaller one finds too."
    )
    with st.form("evaluate"):
        queries = st.text_input("Folder of query images", placeholder="/home/me/queries")
        left, right = st.columns([3, 1])
        sizes = left.text_input(
            "Sizes", "S,M,L,XL,mix", help="`mix` adds a dozen Mix'n'Match submodels"
        )
        k = right.number_input("Hits that count", 1, 100, 10)
        wanted = st.form_submit_button("Evaluate", type="primary")
    if wanted and "judging" not in st.session_state:
        opened = shown.opened
        st.session_state.judging = judging.Judging(
            lambda tell: judging.judge(opened, queries, sizes, int(k), tell)
        )
    if "judging" in st.session_state:
        _watch()
    if error := st.session_state.pop("judging_error", None):
        st.error(plain(error))
    judged = st.session_state.get("judged")
    if judged is not None:
        _draw_results(shown, judged)


def take_judged() -> None:
    """Go by what an evaluation found, if one has ended since."""
    state = st.session_state
    work = state.get("judging")
    if work is None or not work.done:
        return
    del state.judging
    if work.judged is not None:
        state.judged = work.judged
    else:
        state.judging_error = work.error


@st.fragment(run_every=_LOOK_EVERY_S)
def _watch() -> None:
    """Say how far the evaluation is, and draw the whole page again at its end."""
    work = st.session_state.get("judging")
    if work is None or work.done:
        st.rerun()
    told = f"Asking … {work.share:.0%}" if work.share < 1 else "Timing every size …"
    st.progress(work.share, f"{told} You can look at the other tabs meanwhile.")


def _draw_results(shown: Shown, judged: judging.Judged) -> None:
    frontier = judged.frontier
    st.subheader(f"Results for {plain(Path(judged.queries).name)}", anchor=False)
    if judged.generation != shown.opened.info["generation"]:
        st.warning("The index has changed since; evaluate again to see what it finds now.")
    if judged.unreadable:
        st.warning(f"{judged.unreadable:,} queries could not be read and were left out.")
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.dataframe(
            judging.results_table(frontier),
            hide_index=True,
            column_config={
                "of full": st.column_config.NumberColumn(format="percent"),
                "retained": st.column_config.NumberColumn(format="percent"),
                "ms, one image": st.column_config.NumberColumn(format="%.1f"),
            },
        )
    with right:
        st.altair_chart(
            chart.frontier_chart(frontier, height=320), width="stretch", key="judged-chart"
        )
    if frontier.conditions is not None:
        st.caption(plain(format_conditions(frontier.conditions)))
    with st.container(horizontal=True):
        for name, media, content in judged.downloads:
            st.download_button(
                name, content, file_name=name, mime=media, icon=":material/download:",
                on_click="ignore",
            )  # fmt: skip
