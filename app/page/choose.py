"""Choosing a submodel: on the chart, by a budget, or block by block."""

from __future__ import annotations

import streamlit as st

from app.page import chart, markup, visit
from app.page.comparison import cost_of
from app.page.looks import plain
from app.page.measured import Unit, found_in, units, within
from app.page.search import draw_strips
from app.page.visit import Shown, from_blocks
from matvit import Granularity, parse_submodel
from retrieval import ParetoFrontier

_BLOCKS_PER_ROW = 3
_SIZES = [size.value for size in Granularity]
_OPTION = {Unit.GMACS: "--max-gmacs", Unit.MS: "--max-ms"}


def draw_choose(shown: Shown) -> None:
    """Draw the chart, the budget and the blocks, and what the pick finds."""
    if not shown.has_choice:
        st.info("This encoder is one extracted submodel: there is nothing to choose.")
        return
    if st.session_state.pick is None:
        visit.use(shown, shown.recommended or "S")
    left, right = st.columns([3, 2], gap="large")
    with left:
        _draw_frontier(shown)
        _draw_advice(shown)
    with right:
        _draw_pick(shown)
        _draw_budget(shown)
        _draw_blocks(shown)
    _draw_answers(shown)


def _draw_frontier(shown: Shown) -> None:
    found = shown.found
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
            found.frontier,
            {st.session_state.pick},
            recommended=shown.recommended,
            clickable=True,
        ),
        width="stretch",
        key=visit.chart_key(),
        on_select=lambda: _use_clicked(shown),
        selection_mode=chart.CLICK,
        alt=f"{chart.describe(found.frontier.metric)} against compute of "
        f"{len(found.frontier)} submodels",
    )
    _draw_list(shown, found.frontier)
    source = f"{found.source} {plain(found.file)}".strip()
    told = " · ".join(filter(None, [source, plain(found.conditions)]))
    st.caption(told[:1].upper() + told[1:])


def _draw_list(shown: Shown, frontier: ParetoFrontier) -> None:
    """The points of the chart once more: these can be reached with the keyboard."""
    points = {point.submodel: point for point in frontier}
    pick = st.session_state.pick
    st.session_state.listed = pick if pick in points else None
    st.selectbox(
        "Click a point to use it, or choose it here",
        list(points),
        index=None,
        key="listed",
        format_func=lambda name: chart.in_words(frontier, points[name]),
        placeholder="Your pick was not measured",
        on_change=_use_listed,
        args=(shown,),
    )


def _use_listed(shown: Shown) -> None:
    if st.session_state.listed is not None:
        visit.use(shown, st.session_state.listed)


def _draw_advice(shown: Shown) -> None:
    """What tuning recommends, and what a query does that chooses for itself."""
    tuned = shown.opened.tuned
    lines = [f"★ {plain(tuned.summary[0].upper() + tuned.summary[1:])}."] if tuned.summary else []
    if tuned.auto is not None:
        lines.append(f"**auto**: {plain(tuned.auto)}.")
    if lines:
        st.markdown("  \n".join(lines))


def _use_clicked(shown: Shown) -> None:
    submodel = chart.clicked(st.session_state[visit.chart_key()])
    if submodel is not None:
        visit.use(shown, submodel)


def _draw_budget(shown: Shown) -> None:
    unit = visit.budget_unit(shown)
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
            on_change=_keep_pick,
            args=(shown,),
        )
    limits = visit.budget_limits(shown, unit)
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
        help=f"As `matvit search {_OPTION[unit]}` chooses" if shown.found.tuned else None,
    )


def _keep_pick(shown: Shown) -> None:
    """Give the budget in another unit: what the pick costs, if that is known, or all there is."""
    st.session_state.pop("budget", None)
    visit.fit_budget(shown)


def _use_budget(shown: Shown) -> None:
    unit = visit.budget_unit(shown)
    found = None if unit is None else shown.found.bought_from(unit)
    if unit is None or found is None:
        return
    limit = visit.budget_limits(shown, unit).clip(st.session_state.budget)
    try:
        visit.use(shown, within(found, unit, limit).submodel)
    except ValueError as error:
        st.session_state.refused = plain(error)
    st.session_state.budget = limit  # what was asked for, not what it costs


def _draw_pick(shown: Shown) -> None:
    encoder = shown.opened.retriever.encoder
    pick = st.session_state.pick
    cost = cost_of(encoder.config, encoder.submodel(pick))
    st.html(markup.cost_card(cost, found_in(shown.frontier, pick), shown.frontier))


def _draw_blocks(shown: Shown) -> None:
    """One slider per block, and whether tokens are merged, say together which submodel it is."""
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
    st.toggle(
        "Merge tokens that are alike",
        key="block-merge",
        on_change=_use_blocks,
        args=(shown,),
        help="Fewer tokens cost less in attention too, which no width makes cheaper: `S~`",
    )


def _use_blocks(shown: Shown) -> None:
    config = shown.opened.retriever.encoder.config
    sizes = [Granularity(st.session_state[f"block-{block}"]) for block in range(config.depth)]
    like = None
    if st.session_state["block-merge"]:
        pick = shown.opened.retriever.encoder.submodel(st.session_state.pick)
        like = pick if pick.merged else parse_submodel(config, "S~")
    visit.use(shown, str(from_blocks(config, sizes, like)))


def _draw_answers(shown: Shown) -> None:
    """What the pick finds for the current query, above what the full encoder finds."""
    try:
        query = visit.query(shown)
        whole = shown.opened.sights.of(query).whole
    except (OSError, ValueError) as error:
        st.error(f"This cannot be used as a query: {plain(error)}")
        return
    with st.container(key="asked", horizontal=True, vertical_alignment="center", wrap=False):
        st.image(whole, width=64, alt=f"the query, {query.name}")
        st.subheader("What your pick finds for this", anchor=False)
    both = dict.fromkeys([st.session_state.pick, shown.opened.full])
    draw_strips(shown, query, list(both), key="chosen")
