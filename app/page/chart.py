"""Recall against compute as a chart that can be clicked."""

from __future__ import annotations

from collections.abc import Collection

import altair as alt
import pandas as pd

from app.page.looks import spoken
from matvit import Granularity
from retrieval import OperatingPoint, ParetoFrontier

CLICK = "click"
"""Name of the selection: what was clicked."""

_LINE, _OTHER, _TRAINED, _CHOSEN = "#3b82c4", "#7d8a9c", "#d6604d", "#c27700"
_TRAINED_NAMES = {size.value for size in Granularity}


def frontier_chart(
    frontier: ParetoFrontier,
    chosen: Collection[str] = (),
    *,
    recommended: str | None = None,
    clickable: bool = False,
    height: int = 380,
) -> alt.LayerChart:
    """Draw every measured submodel, the Pareto line and the trained sizes.

    Args:
        frontier: What was measured.
        chosen: Submodels in use; they wear a ring.
        recommended: The one that tuning recommends.
        clickable: Whether a click selects a point; see `clicked`.
        height: Pixels.
    """
    base = _base(frontier, frontier_table(frontier, chosen, recommended))
    line = base.transform_filter("datum.pareto").mark_line(color=_LINE, strokeWidth=2.5)
    rings = base.transform_filter("datum.chosen").mark_point(
        size=380, color=_CHOSEN, strokeWidth=3, filled=False, opacity=1
    )
    names = base.transform_filter("datum.name != ''").mark_text(
        dy=-16,
        fontWeight="bold",
        fontSize=13,  # the style sheet gives them the theme's colour
    )
    points = _points(base, frontier, clickable=clickable)
    layers = [line, rings, points, names.encode(text="name:N")]
    return alt.LayerChart(layer=layers, height=height)


def _base(frontier: ParetoFrontier, table: pd.DataFrame) -> alt.Chart:
    """Both axes, as close around the points as their marks allow."""
    number = ".1%" if _is_share(frontier.metric) else ".3f"
    scale = alt.Scale(zero=False, nice=False, padding=26)
    return alt.Chart(table).encode(
        x=alt.X(
            "gmacs:Q", title="compute per query, GMACs", scale=scale, axis=alt.Axis(tickCount=7)
        ),
        y=alt.Y(
            "recall:Q",
            title=describe(frontier.metric),
            scale=scale,
            axis=alt.Axis(format=number, tickCount=6),
        ),
    )


def _points(base: alt.Chart, frontier: ParetoFrontier, *, clickable: bool) -> alt.Chart:
    """One circle per submodel, to be hovered over and perhaps clicked."""
    kinds = alt.Scale(
        domain=["trained", "frontier", "other"],
        range=[_TRAINED, _LINE, _OTHER],
    )
    legend = alt.Legend(title=None, orient="top", symbolOpacity=1)
    circles = base.mark_circle(opacity=1, cursor="pointer" if clickable else "default").encode(
        color=alt.Color("kind:N", scale=kinds, legend=legend),
        size=alt.Size("size:Q", scale=None, legend=None),
        tooltip=_tooltip(frontier),
    )
    click = alt.selection_point(name=CLICK, fields=["submodel"], on="click", empty=False)
    chart: alt.Chart = circles.add_params(click) if clickable else circles
    return chart


def frontier_table(
    frontier: ParetoFrontier, chosen: Collection[str] = (), recommended: str | None = None
) -> pd.DataFrame:
    """One row per measured submodel, as the chart wants it."""
    return pd.DataFrame(
        [_row(frontier, point, chosen, recommended) for point in frontier],
        columns=["submodel", "name", "kind", "gmacs", "fraction", "recall", "latency_ms",
                 "pareto", "chosen", "size"],
    )  # fmt: skip


def clicked(event: object) -> str | None:
    """Read which submodel a click on the chart was about; None for a click beside all points."""
    selection = event.get("selection", {}) if isinstance(event, dict) else {}
    points = selection.get(CLICK) or []
    return str(points[-1]["submodel"]) if points else None


def in_words(frontier: ParetoFrontier, point: OperatingPoint) -> str:
    """Say in a line what a point costs and finds."""
    form = ".1%" if _is_share(frontier.metric) else ".3f"
    return (
        f"{spoken(point.submodel)} · {point.macs / 1e9:.3f} GMACs · {frontier.recall(point):{form}}"
    )


def describe(metric: str) -> str:
    """Say what a metric means to someone who has not read its definition."""
    name, _, k = metric.partition("@")
    if name == "overlap":
        return f"share of the full encoder's top {k} found"
    if name == "retained_hit_rate":
        return f"hit rate@{k}, share of the full encoder's"
    return metric.replace("_", " ")


def _row(
    frontier: ParetoFrontier,
    point: OperatingPoint,
    chosen: Collection[str],
    recommended: str | None,
) -> dict[str, object]:
    trained = point.submodel in _TRAINED_NAMES
    kind = "frontier" if point.pareto else "other"
    name = spoken(point.submodel) if trained or point.submodel in chosen else ""
    if point.submodel == recommended:
        name = f"★ {spoken(point.submodel)}"
    return {
        "submodel": point.submodel,
        "name": name,
        "kind": "trained" if trained else kind,
        "gmacs": point.macs / 1e9,
        "fraction": point.macs_fraction,
        "recall": frontier.recall(point),
        "latency_ms": point.latency_ms_p50,
        "pareto": bool(point.pareto),
        "chosen": point.submodel in chosen,
        "size": 170 if trained else 90 if point.pareto else 60,
    }


def _tooltip(frontier: ParetoFrontier) -> list[alt.Tooltip]:
    shares = ".1%" if _is_share(frontier.metric) else ".4f"
    tooltip = [
        alt.Tooltip("submodel:N"),
        alt.Tooltip("recall:Q", format=shares, title=frontier.metric),
        alt.Tooltip("gmacs:Q", format=".3f", title="GMACs"),
        alt.Tooltip("fraction:Q", format=".0%", title="of full compute"),
    ]
    if all(point.latency_ms_p50 is not None for point in frontier):
        tooltip.append(alt.Tooltip("latency_ms:Q", format=".1f", title="ms, one image"))
    return tooltip


def _is_share(metric: str) -> bool:
    return metric.startswith(("overlap", "retained"))
