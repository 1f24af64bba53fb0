"""Choosing a submodel: on the chart, by a budget, or block by block."""

from __future__ import annotations

import streamlit as st

from app.page import chart, markup, session
from app.page.choice import budget_range, cost_of, from_blocks, measured, units, within
from app.page.frontiers import Measured
from app.page.plain import plain
from app.page.search_view import draw_strips
from app.page.session import Shown
from matvit.submodel import Granularity

_BLOCKS_PER_ROW = 3
_SIZES = [size.value for size in Granularity]


def draw_choose(shown: Shown, found: Measured) -> None:
    """Draw the chart, the budget and the blocks, and what the pick finds."""
    if not shown.opened.retriever.encoder.submodel(None).is_full:
        st.info("This encoder is one extracted submodel: there is nothing to choose.")
        return
    if st.session_state.pick is None:
        session.use(shown, shown.recommended or "S")
    left, right = st.columns([3, 2], gap="large")
    with left:
        _draw_frontier(shown, found)
        _draw_advice(shown)
    with right:
        _draw_pick(shown)
        _draw_budget(shown)
        _draw_blocks(shown)
    _draw_answers(shown)


def _draw_frontier(shown: Shown, found: Measured) -> None:
    st.subheader("What each size finds, and what it costs", anchor=False)
    if found.problem:
        st.warning(plain(found.problem))
    if found.frontier is None:
        st.markdown("Nothing was measured on this index yet. Do it here, under **Evaluate**, or:")
        st.code(
            "matvit evaluate INDEX --queries IMAGES --submodels S,M,L,XL,mix --out report", "bash"
        )
        return
    st.altair_chart(
        chart.frontier_chart(
            found.frontier, {st.session_state.pick}, recommended=shown.recommended
        ),
        width="stretch",
        key="frontier",
        on_select=lambda: _use_clicked(shown),
        selection_mode=chart.CLICK,
        alt=f"{chart.describe(found.frontier.metric)} against compute of "
        f"{len(found.frontier)} submodels",
    )
    told = " · ".join(filter(None, [found.source, plain(found.conditions)]))
    st.caption(f"Click a point to use it · {told}")


def _draw_advice(shown: Shown) -> None:
    """What tuning recommends, and what a query does that chooses for itself."""
    tuned = shown.opened.tuned
    lines = [f"★ {plain(tuned.summary[0].upper() + tuned.summary[1:])}."] if tuned.summary else []
    if tuned.auto is not None:
        lines.append(f"**auto**: {plain(tuned.auto)}.")
    if lines:
        st.markdown("  \n".join(lines))


def _use_clicked(shown: Shown) -> None:
    submodel = chart.clicked(st.session_state.frontier)
    if submodel is not None:
        session.use(shown, submodel)


def _draw_budget(shown: Shown) -> None:
    unit = session.budget_unit(shown)
    if shown.frontier is None or unit is None:
        st.caption("A budget needs a measurement: then the slider finds the best size within it.")
        return
    offered = units(shown.frontier)
    if len(offered) > 1:
        st.segmented_control(
            "Within a budget of",
            [str(each) for each in offered],
            key="unit",
            default=str(unit) if "unit" not in st.session_state else None,
            required=True,
            on_change=_use_budget,
            args=(shown,),
        )
    limits = budget_range(shown.frontier, unit)
    st.session_state.budget = limits.clip(st.session_state.get("budget", limits.high))
    st.slider(
        f"At most this many {unit} for each query",
        limits.low,
        limits.high,
        step=limits.step,
        format=f"%.{limits.decimals}f",
        key="budget",
        on_change=_use_budget,
        args=(shown,),
    )


def _use_budget(shown: Shown) -> None:
    unit = session.budget_unit(shown)
    if shown.frontier is None or unit is None:
        return
    limits = budget_range(shown.frontier, unit)
    limit = limits.clip(st.session_state.get("budget", limits.high))
    try:
        session.use(shown, within(shown.frontier, unit, limit).submodel)
    except ValueError as error:
        st.session_state.refused = plain(error)
    st.session_state.budget = limit  # what was asked for, not what it costs


def _draw_pick(shown: Shown) -> None:
    encoder = shown.opened.retriever.encoder
    pick = st.session_state.pick
    cost = cost_of(encoder.config, encoder.submodel(pick))
    st.html(markup.cost_card(cost, measured(shown.frontier, pick), shown.frontier))


def _draw_blocks(shown: Shown) -> None:
    """One slider per block; together they say which submodel it is."""
    st.caption("Or block by block:")
    depth = shown.opened.retriever.encoder.config.depth
    with st.grid(min(depth, _BLOCKS_PER_ROW), min_column_width=84, key="blocks"):
        for block in range(depth):
            st.select_slider(
                f"Block {block + 1}",
                _SIZES,
                key=f"block-{block}",
                on_change=_use_blocks,
                args=(shown,),
            )


def _use_blocks(shown: Shown) -> None:
    config = shown.opened.retriever.encoder.config
    sizes = [Granularity(st.session_state[f"block-{block}"]) for block in range(config.depth)]
    session.use(shown, str(from_blocks(config, sizes)))


def _draw_answers(shown: Shown) -> None:
    """What the pick finds for the current query, above what the full encoder finds."""
    st.subheader("What your pick finds", anchor=False)
    try:
        query = session.query(shown)
    except (OSError, ValueError) as error:
        st.error(plain(error))
        return
    both = dict.fromkeys([st.session_state.pick, shown.opened.full])
    draw_strips(shown, query, list(both), key="chosen")
