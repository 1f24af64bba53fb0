"""Tuning an index from the page, while its visitor looks elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app.page.looks import plain
from app.page.opened import Opened
from app.page.visit import Shown
from app.page.work import StoppedError, Work
from retrieval import Tuning, tune

_LOOK_EVERY_S = 1.0
_FEWEST, _USUAL, _MOST = 40, 2000, 20_000


def tune_opened(opened: Opened, size: int, tell: Callable[[float], None]) -> Tuning:
    """Tune an index on altered images of its own.

    Args:
        opened: The index and its encoder.
        size: Queries to measure with.
        tell: Called with how many submodels are measured, after each; it may raise to stop, and
            what is measured by then is kept for the next time.
    """
    measured = 0

    def step(count: int) -> None:
        nonlocal measured
        measured += count
        tell(measured)

    return tune(opened.retriever, size=size, on_step=step)


def draw_tune(shown: Shown) -> None:
    """Offer to tune the index, say how far that is, and what came of it."""
    st.subheader("Tune this index", anchor=False)
    tuned = shown.opened.tuned
    st.markdown(
        plain(tuned.summary)
        if tuned.summary
        else "Not tuned yet. Tuning measures many sizes on images of the index itself: it finds "
        "which are worth asking with, how a query chooses for itself, and which score to ask of a "
        "good match. It takes minutes, goes on while you look elsewhere, and can be stopped."
    )
    if not shown.has_choice:
        return
    state = st.session_state
    with st.container(horizontal=True, vertical_alignment="bottom"):
        size = st.number_input("Queries", _FEWEST, _MOST, _USUAL, key="tune-size", width=180)
        wanted = st.button("Tune", key="tune", disabled="tuning" in state)
    if wanted and "tuning" not in state:
        opened = shown.opened
        state.tuning = Work(lambda tell: tune_opened(opened, int(size), tell))
    if "tuning" in state:
        _watch()
    if error := state.pop("tuning_error", None):
        if isinstance(error, StoppedError):
            st.info("Stopped; the next run goes on from there.")
        else:
            st.error(plain(error))


@st.fragment(run_every=_LOOK_EVERY_S)
def _watch() -> None:
    """Say how far tuning is; at its end draw the whole page again, which opens the index anew."""
    state = st.session_state
    work = state.get("tuning")
    if work is None or work.done:
        if work is not None:
            state.tuning_error = work.error
            del state.tuning
        st.rerun()
    st.info(f"{work.told:,.0f} submodels measured … You can look at the other tabs meanwhile.")
    st.button("Stop", key="stop-tuning", on_click=work.stop, disabled=work.stopping)
