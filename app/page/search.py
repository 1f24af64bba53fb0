"""One query, several encoder sizes, one strip each."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app.output import readable
from app.page import markup, visit
from app.page.comparison import Cell, Strip, compare, cost_of, scale_of
from app.page.looks import plain, spoken
from app.page.opened import FEWEST_HITS, MOST_HITS
from app.page.pictures import MAX_UPLOAD_BYTES, Query
from app.page.visit import Shown

_MOST_CLASSES = 300


def draw_search(shown: Shown) -> None:
    """Draw the query, what can be switched on, and a strip for each."""
    left, right = st.columns([1, 4], gap="medium")
    with left, st.container(key="query"):
        query = _draw_query(shown)
    with right:
        _draw_controls(shown)
        if query is not None:
            draw_strips(shown, query, st.session_state.sizes or [shown.opened.full], key="strip")


def draw_strips(shown: Shown, query: Query, submodels: Sequence[str], *, key: str) -> None:
    """Draw the answers of some submodels, one below the other, on one scale.

    Args:
        shown: The page.
        query: What is asked with.
        submodels: Who answers.
        key: Tells these strips from others on the page.
    """
    try:
        refined = visit.refined(shown)
    except ValueError as error:
        st.error(plain(error))
        return
    try:
        strips = compare(
            shown.opened,
            query,
            submodels,
            st.session_state.k,
            refined=refined,
            min_score=visit.min_score(),
            before_each=_give_way,
        )
    except ValueError as error:
        st.error(f"This cannot be used as a query: {plain(error)}")
        return
    scale = scale_of(strips)
    slowest_ms = max((strip.total_ms for strip in strips), default=0.0)
    labelled = any(strip.right is not None for strip in strips)
    for place, strip in enumerate(strips):
        found = _hits(shown, strip, scale, f"{key}-{place}")
        st.html(markup.strip(_head(shown, strip, slowest_ms), found))
    st.html(markup.legend(scale, labelled=labelled))


def _draw_query(shown: Shown) -> Query | None:
    """Draw what is asked with, and the ways to ask with something else."""
    query = _show_query(shown)
    st.button(
        "Another image",
        key="another",
        icon=":material/shuffle:",
        on_click=visit.ask_any,
        args=(shown,),
        width="stretch",
        help="Ask with some other image of the index",
    )
    _draw_uploader(shown)
    _draw_marked(shown)
    return query


def _draw_marked(shown: Shown) -> None:
    """Draw what was marked to be like, or unlike; a click takes it back.

    Without a help of Streamlit's, which would draw each button twice.
    """
    index = shown.opened.index
    for sign, said, numbers in (
        ("+", ":material/add:", st.session_state.more),
        ("-", ":material/remove:", st.session_state.less),
    ):
        for number in numbers:
            path = index.path_of(shown.opened.row_of(number))
            st.button(
                plain(path),
                key=f"marked-{number}",
                icon=said,
                on_click=visit.mark,
                args=(number, sign),
                width="stretch",
            )


def draw_unseen_said(shown: Shown) -> None:
    """Draw, out of sight, where the script of the page says which button of a hit was clicked."""
    with st.container(key="unseen-said"):
        st.text_input("said", key="said", on_change=visit.take_said, args=(shown,))


def _draw_uploader(shown: Shown) -> None:
    """Draw where an image is chosen; one dropped or pasted anywhere is put there by a script."""
    st.file_uploader(
        "Your own image: choose, drop or paste it",
        key=f"upload-{st.session_state.turn}",
        max_upload_size=MAX_UPLOAD_BYTES // 1_000_000,
        on_change=visit.take_upload,
        args=(shown,),
    )


def draw_unseen_uploader(shown: Shown) -> None:
    """Draw it out of sight, for what is dropped or pasted on a tab that has none."""
    with st.container(key="unseen"):
        _draw_uploader(shown)


def _show_query(shown: Shown) -> Query | None:
    try:
        query = visit.query(shown)
        sight = shown.opened.sights.of(query)
    except (OSError, ValueError) as error:
        st.error(f"This cannot be used as a query: {plain(error)}")
        return None
    st.html(markup.query_card(query, sight))
    return query


def _draw_controls(shown: Shown) -> None:
    with st.container(key="controls", horizontal=True, gap="large"):
        st.pills(
            "Encoder sizes",
            visit.offered(shown),
            format_func=spoken,
            selection_mode="multi",
            key="sizes",
        )
        st.slider("Hits", FEWEST_HITS, MOST_HITS, key="k", width=180)
        with st.popover("Filter", icon=":material/tune:", key="filter"):
            _draw_filter(shown)


def _draw_filter(shown: Shown) -> None:
    cutoff = None if shown.opened.tuned.tuning is None else shown.opened.tuned.tuning.cutoff
    st.slider(
        "Least score",
        0.0,
        1.0,
        step=0.005,
        key="min_score",
        format="%.3f",
        help="On the full encoder's scale, so that it means the same at every size; 0 for none",
    )
    if cutoff is not None:
        st.caption(
            f"Tuning proposes {cutoff.min_score:.3f}: {cutoff.false_accepts:.1%} of queries then "
            f"see a wrong image, {cutoff.kept:.1%} a right one."
        )
    st.text_input("Only names like", key="inside", placeholder="holiday/** or *.png")
    names = shown.opened.index.class_names
    if names and len(names) <= _MOST_CLASSES:
        st.multiselect("Only these classes", names, key="classes", format_func=readable)
    st.toggle("Show near-duplicates once", key="collapse")


def _give_way() -> None:
    """End this run if the visitor has clicked again: Streamlit does it when the state is read."""
    _ = "k" in st.session_state


def _head(shown: Shown, strip: Strip, slowest_ms: float) -> str:
    encoder = shown.opened.retriever.encoder
    tags = [
        word
        for word, applies in {
            "full": strip.title == shown.opened.full,
            "recommended": strip.title == shown.recommended,
            "your pick": strip.title == st.session_state.pick != shown.recommended,
        }.items()
        if applies
    ]
    cost = cost_of(encoder.config, encoder.submodel(strip.answer.submodel))
    is_full = strip.title == shown.opened.full
    return markup.strip_head(strip, cost, tags, slowest_ms, is_full=is_full)


def _hits(shown: Shown, strip: Strip, scale: tuple[float, float], place: str) -> str:
    if not strip.cells:
        return markup.nothing(strip.nothing)
    is_full = strip.title == shown.opened.full
    drawn = [_hit(cell, scale, f"{place}-{cell.hit.rank}", is_full=is_full) for cell in strip.cells]
    return markup.grid(drawn, len(drawn))


def _hit(cell: Cell, scale: tuple[float, float], place: str, *, is_full: bool) -> str:
    return markup.hit(
        cell.hit.id,
        cell.hit.path,
        cell.picture,
        place=place,
        verdict={True: "right", False: "wrong", None: ""}[cell.right],
        below=markup.cell_caption(cell, scale, is_full=is_full),
    )
