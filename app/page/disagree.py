"""The queries of an evaluation, by what a size loses on them; a click compares."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from app.output import readable
from app.page import visit
from app.page.looks import plain, spoken
from app.page.pictures import uploaded_query
from indexing import Corpus
from retrieval import Disagreement, Evaluation

_MOST_ROWS = 500


def draw_disagreements(found: Evaluation, queries: Corpus) -> None:
    """Draw a table of queries for one size, the worst first, and one of classes.

    Args:
        found: What was measured, query by query.
        queries: Where the images of the queries are.
    """
    if not found.smaller:
        return
    st.subheader("Where sizes disagree", anchor=False)
    submodel = st.selectbox(
        "What a size loses against the full encoder", found.smaller, format_func=spoken,
        key="disagreeing",
    )  # fmt: skip
    listed = found.disagreements(submodel)
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.caption(f"Queries, by {plain(found.metric)} lost. Choose one to compare both answers.")
        st.dataframe(
            queries_table(listed),
            hide_index=True,
            key=f"disagreements-{submodel}",
            on_select=lambda: _compare(found, queries, submodel),
            selection_mode="single-row",
        )
    with right:
        if classes := found.by_class(submodel):
            st.caption("Classes, on average")
            table = [(readable(each.label), each.queries, each.lost) for each in classes]
            st.dataframe(pd.DataFrame(table, columns=["class", "queries", "lost"]), hide_index=True)
    if found.without_twins is not None:
        st.caption(
            f"{found.twins.sum():,} of {len(found.twins):,} queries have a near-duplicate in the "
            "index, which every size finds."
        )


def queries_table(listed: list[Disagreement]) -> pd.DataFrame:
    """The first queries as rows."""
    rows = [
        (readable(each.path), readable(each.label or ""), each.full, each.reached, each.lost,
         each.overlap)
        for each in listed[:_MOST_ROWS]
    ]  # fmt: skip
    columns = ["query", "class", "full", "this size", "lost", "overlap"]
    return pd.DataFrame(rows, columns=columns)


def _compare(found: Evaluation, queries: Corpus, submodel: str) -> None:
    """Ask with the query that was chosen, with the size and with the full encoder."""
    state = st.session_state
    chosen = state[f"disagreements-{submodel}"].selection.rows
    if not chosen:
        return
    query = found.disagreements(submodel)[chosen[0]]
    record = found.records[query.query]
    place = int(np.searchsorted(queries.positions, record.position))
    try:
        asked = uploaded_query(record.path, queries.read(place), label=query.label)
    except (OSError, ValueError) as error:
        state.refused = f"{plain(record.path)}: {plain(error)}"
        return
    visit.ask_with(state.asked, asked)
    state.sizes, state.view = [submodel, found.full], visit.SEARCH
