"""A frontier as a table, as CSV and JSON, and as a plot: what an evaluation leaves behind."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import retrieval
from matvit import write_atomically
from retrieval.frontier import Conditions, OperatingPoint, ParetoFrontier


class _Column(NamedTuple):
    """A column of numbers: `read` returns None where nothing was measured."""

    title: str
    read: Callable[[OperatingPoint], float | None]
    number: str


def format_table(
    points: Iterable[OperatingPoint], *, markdown: bool = False, recommended: str | None = None
) -> str:
    """Lay out operating points as an aligned table, those that are Pareto-optimal starred.

    Columns that nothing was measured for are left out.

    Args:
        points: A `ParetoFrontier`, its `pareto`, or any points of one.
        markdown: Write a Markdown table.
        recommended: Submodel to mark with an arrow.

    Raises:
        ValueError: If there are no points.
    """
    return _join(_table(points, recommended), markdown=markdown)


def table_rows(points: Iterable[OperatingPoint]) -> list[tuple[str, ...]]:
    """The cells of that table row by row, the first of which names the columns.

    Raises:
        ValueError: If there are no points.
    """
    return list(zip(*_table(points, None), strict=True))


def _table(points: Iterable[OperatingPoint], recommended: str | None) -> list[list[str]]:
    """The columns of a table, each with its title on top."""
    shown = list(points)
    if not shown:
        raise ValueError("a table needs at least one operating point, got none")
    table = [["submodel", *(point.submodel for point in shown)]]
    for title, read, number in _columns(shown):
        values = [read(point) for point in shown]
        if any(value is not None for value in values):
            table.append(
                [title, *("" if value is None else f"{value:{number}}" for value in values)]
            )
    marks = [
        ("*" if point.pareto else "") + (" <-" if point.submodel == recommended else "")
        for point in shown
    ]
    return [*table, ["best", *marks]]


def format_conditions(conditions: Conditions) -> str:
    """Say in one line who asked what of whom, and where."""
    counts = {
        "more unreadable": conditions.unreadable,
        "with nothing relevant": conditions.without_relevant,
        "in the index themselves": conditions.in_index,
        "with a near-duplicate in it": conditions.twins,
    }
    notes = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    return (
        f"{conditions.queries:,} queries{notes and f' ({notes})'} against "
        f"{conditions.images:,} images, {conditions.encoder} on {conditions.device}, "
        f"{conditions.precision}{conditions.runtime and f', {conditions.runtime}'}"
        f"{conditions.disorder and f'; {conditions.disorder}'}"
    )


def to_csv(points: Iterable[OperatingPoint]) -> str:
    """Write operating points as CSV, named as in JSON; what was not measured stays empty.

    Raises:
        ValueError: If there are no points.
    """
    rows = [point.to_dict() for point in points]
    if not rows:
        raise ValueError("a table needs at least one operating point, got none")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_report(
    frontier: ParetoFrontier,
    folder: str | Path,
    *,
    title: str = "Recall against compute",
    recommended: str | None = None,
) -> list[Path]:
    """Write `report.json`, `report.csv`, `frontier.png` and `frontier.svg`.

    Everything is made before anything is written, and each file is replaced in one step, so no
    half file is ever seen.

    Args:
        frontier: What was measured.
        folder: Where to; created if missing. Files of an earlier report are replaced.
        title: Heading of the plot.
        recommended: Submodel to mark in the plot and to name in the JSON.

    Returns:
        The files.

    Raises:
        OSError: If they cannot be written.
    """
    contents = {
        "report.json": frontier.to_json(recommended).encode(),
        "report.csv": to_csv(frontier).encode(),
        "frontier.png": _draw(frontier, title, recommended, "png"),
        "frontier.svg": _draw(frontier, title, recommended, "svg"),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    files = [Path(folder) / name for name in contents]
    for file, content in zip(files, contents.values(), strict=True):
        _write(file, content)
    return files


def _columns(points: Sequence[OperatingPoint]) -> list[_Column]:
    """The columns of the table, in the order in which people compare."""
    k = points[0].k
    smallest = min(point.macs for point in points) / 1e9
    decimals = max(0, 2 - math.floor(math.log10(smallest)))  # three digits of the smallest
    return [
        _Column("GMACs", lambda point: point.macs / 1e9, f".{decimals}f"),
        _Column("of full", lambda point: point.macs_fraction, ".1%"),
        _Column("M params", lambda point: point.params / 1e6, ".2f"),
        _Column("retained", lambda point: point.retained_hit_rate_at_1, ".4f"),
        _Column("hit_rate@1", lambda point: point.hit_rate_at_1, ".4f"),
        _Column(f"recall@{k}", lambda point: point.recall_at_k, ".4f"),
        _Column("map@r", lambda point: point.map_at_r, ".4f"),
        _Column(f"overlap@{k}", lambda point: point.overlap_at_k, ".4f"),
        _Column("p50 ms", lambda point: point.latency_ms_p50, ".2f"),
        _Column("p95 ms", lambda point: point.latency_ms_p95, ".2f"),
        _Column("images/s", lambda point: point.images_per_s, ",.0f"),
    ]


def _join(columns: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """Align names to the left and numbers to the right."""
    names, *numbers = columns
    padded = [_pad(names, str.ljust), *(_pad(column, str.rjust) for column in numbers)]
    header, *rows = zip(*padded, strict=True)
    if not markdown:
        return "\n".join("  ".join(cells).rstrip() for cells in (header, *rows))
    left, *right = (len(cell) for cell in header)
    rule = (":" + "-" * (left - 1), *("-" * (width - 1) + ":" for width in right))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _pad(column: Sequence[str], justify: Callable[[str, int], str]) -> list[str]:
    """Make all cells as wide as the widest."""
    width = max(map(len, column))
    return [justify(cell, width) for cell in column]


def _draw(
    frontier: ParetoFrontier, title: str, recommended: str | None, kind: Literal["png", "svg"]
) -> bytes:
    """Render the plot as PNG or SVG; nothing else here needs matplotlib."""
    caption = "" if frontier.conditions is None else format_conditions(frontier.conditions)
    return retrieval.draw(frontier, kind, title=title, caption=caption, recommended=recommended)


def _write(file: Path, content: bytes) -> None:
    write_atomically(file, lambda stream: stream.write(content))
