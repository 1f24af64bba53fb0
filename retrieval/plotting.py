"""Recall against compute as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from matvit import Granularity
from retrieval.frontier import OperatingPoint, ParetoFrontier

_INK, _FAINT, _GRID = "#1c2430", "#66717f", "#e6e9ed"
_DOMINATED, _BEST, _TRAINED = "#a9b8c9", "#2166ac", "#d6604d"
_HALO = withStroke(linewidth=3, foreground="white")  # keeps text readable on top of points
_CHOSEN = "#d97706"
_GIGA = 1e9
_PIXELS_PER_INCH = 200


def draw(frontier: ParetoFrontier, kind: Literal["png", "svg"], **how: Any) -> bytes:  # noqa: ANN401
    """Render what `plot` makes of a frontier as PNG or SVG, always the same bytes."""
    stream = io.BytesIO()
    # With a date, or ids drawn at random, the same numbers would not give the same file.
    with mpl.rc_context({"svg.hashsalt": "matvit"}):
        plot(frontier, **how).savefig(
            stream,
            format=kind,
            dpi=_PIXELS_PER_INCH,
            metadata={"Date": None} if kind == "svg" else {},
        )
    return stream.getvalue()


def plot(
    frontier: ParetoFrontier,
    *,
    title: str = "Recall against compute",
    caption: str = "",
    recommended: str | None = None,
) -> Figure:
    """Draw every point, the Pareto line, the trained sizes and the full encoder.

    The figure belongs to no window and no global state, so several threads may draw at once.

    Args:
        frontier: What was measured.
        title: Heading.
        caption: Small print at the bottom.
        recommended: Submodel to mark; one that was not measured is not drawn.
    """
    figure = Figure(figsize=(9.6, 5.6), facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.12)
    axes = figure.add_subplot()
    _draw_points(axes, frontier)
    _draw_trained_sizes(axes, frontier)
    _draw_full(axes, frontier)
    _draw_recommended(axes, frontier, recommended)
    _style(axes, frontier)
    figure.suptitle(title, x=0.016, ha="left", fontsize=17, fontweight="bold", color=_INK)
    figure.supxlabel(caption, x=0.016, ha="left", fontsize=9, color=_FAINT)
    return figure


def _draw_points(axes: Axes, frontier: ParetoFrontier) -> None:
    """Draw what was measured, and the line of the best."""
    dominated = [point for point in frontier if not point.pareto]
    if dominated:
        axes.scatter(*_places(frontier, dominated), s=26, color=_DOMINATED, label="other submodels")
    axes.plot(
        *_places(frontier, frontier.pareto), color=_BEST, linewidth=2.2, marker="o", markersize=5,
        label="Pareto frontier",
    )  # fmt: skip


def _draw_trained_sizes(axes: Axes, frontier: ParetoFrontier) -> None:
    """Mark and name the sizes that training optimised: the rest comes for free."""
    names = {size.value for size in Granularity}
    trained = [point for point in frontier.points if point.submodel in names]
    if not trained:
        return
    axes.scatter(
        *_places(frontier, trained), s=95, color=_TRAINED, edgecolor="white", linewidth=1.5,
        zorder=4, label="trained sizes",
    )  # fmt: skip
    for point, gmacs, percent in zip(trained, *_places(frontier, trained), strict=True):
        # Nothing is up and to the left of the frontier: it would be cheaper and better. Below
        # the frontier the line itself is there.
        side = 1 if point.pareto else -1
        axes.annotate(
            f"$\\bf{{{point.submodel}}}$  {percent:.1f} %", (gmacs, percent),
            (-7 * side, 7 * side), textcoords="offset points",
            ha="right" if point.pareto else "left", va="bottom" if point.pareto else "top",
            fontsize=12, color=_INK, path_effects=[_HALO], zorder=5,
        )  # fmt: skip


def _draw_full(axes: Axes, frontier: ParetoFrontier) -> None:
    """Draw the level that the full encoder sets."""
    if frontier.full is None:
        return
    level = 100 * frontier.recall(frontier.full)
    axes.axhline(level, color=_FAINT, linewidth=1.2, linestyle=(0, (5, 4)), zorder=1)
    axes.annotate(
        "full encoder", (0, level), (4, 5), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=10.5, color=_FAINT,
    )  # fmt: skip


def _draw_recommended(axes: Axes, frontier: ParetoFrontier, recommended: str | None) -> None:
    """Put a ring around the submodel to use."""
    points = [point for point in frontier.points if point.submodel == recommended]
    if points:
        axes.scatter(
            *_places(frontier, points), s=260, facecolor="none", edgecolor=_CHOSEN, linewidth=2.4,
            zorder=5, label=f"recommended: {recommended}",
        )  # fmt: skip


def _style(axes: Axes, frontier: ParetoFrontier) -> None:
    """Name the axes, in units, and leave out every line that says nothing."""
    largest = frontier.points[-1]
    full_gmacs = largest.macs / largest.macs_fraction / _GIGA
    axes.set_xlabel("compute per query (GMACs)", fontsize=12, color=_INK, labelpad=8)
    axes.set_ylabel(_describe(frontier.metric), fontsize=12, color=_INK, labelpad=8)
    axes.margins(x=0.14, y=0.13)  # the labels of the trained sizes stand left of them
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=None, symbol=" %"))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(color=_GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    share = axes.secondary_xaxis(
        "top",
        functions=(
            lambda gmacs: 100 * np.asarray(gmacs) / full_gmacs,
            lambda percent: np.asarray(percent) / 100 * full_gmacs,
        ),
    )
    share.xaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    share.set_xlabel("share of the full encoder's compute", fontsize=10.5, color=_FAINT, labelpad=6)
    for each in (axes, share):
        each.tick_params(labelsize=10.5, colors=_FAINT, length=0)
        each.spines[:].set_visible(False)
    axes.legend(loc="lower right", edgecolor="none", fontsize=11, labelcolor=_INK)


def _places(
    frontier: ParetoFrontier, points: Sequence[OperatingPoint]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the points' compute in GMACs and recall in percent."""
    gmacs = np.array([point.macs for point in points]) / _GIGA
    return gmacs, 100 * np.array([frontier.recall(point) for point in points])


def _describe(metric: str) -> str:
    """Say what a metric means to someone who has not read its definition."""
    name, _, k = metric.partition("@")
    if name == "overlap":
        return f"share of the full encoder's top {k} found"
    if name == "retained_hit_rate":
        return f"hit rate@{k}, share of the full encoder's"
    return "MAP@R" if name == "map" else metric.replace("_", " ")
