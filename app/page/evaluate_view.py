"""Evaluating on a folder of queries, and taking the numbers home."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.console import one_line
from app.page import chart, judging
from app.page.session import Shown
from retrieval.report import format_conditions


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
    if wanted:
        _evaluate(shown, queries, sizes, int(k))
    judged = st.session_state.get("judged")
    if judged is not None:
        _draw_results(judged)


def _evaluate(shown: Shown, queries: str, sizes: str, k: int) -> None:
    bar = st.progress(0.0, "Asking …")

    def tell(share: float) -> None:
        bar.progress(share, f"Asking … {share:.0%}" if share < 1 else "Timing every size …")

    try:
        st.session_state.judged = judging.judge(shown.opened.retriever, queries, sizes, k, tell)
    except (OSError, ValueError) as error:
        st.error(one_line(error))
    else:
        st.rerun()  # so that the whole page goes by what was measured
    finally:
        bar.empty()


def _draw_results(judged: judging.Judged) -> None:
    frontier = judged.frontier
    st.subheader(f"Results for {Path(judged.queries).name}", anchor=False)
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
            },
        )
    with right:
        st.altair_chart(
            chart.frontier_chart(frontier, height=320), width="stretch", key="judged-chart"
        )
    if frontier.conditions is not None:
        st.caption(format_conditions(frontier.conditions))
    with st.container(horizontal=True):
        for name, media, content in judging.downloads(judged):
            st.download_button(
                name, content, file_name=name, mime=media, icon=":material/download:",
                on_click="ignore",
            )  # fmt: skip
