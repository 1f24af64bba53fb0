"""Write what was measured into the README and the docs, from `benchmarks/results/*.json`.

    python benchmarks/render.py            rewrite the tables, the numbers and the plots
    python benchmarks/render.py --check    exit 1 if one of them is not what the results say

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, a number of a trained size on
Tiny ImageNet between `<!-- value: SIZE FIELD -->` and `<!-- end -->`, also in a picture.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tables import TABLES
from tables.text import RESULTS, TRAINED, Row, read

from retrieval import Conditions, OperatingPoint, ParetoFrontier, format_conditions, plot

ROOT = Path(__file__).parent.parent
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_VALUE = re.compile(r"(<!-- value: (\w+) (\S+) -->).*?(<!-- end -->)", re.DOTALL)
_INK, _STATIC, _SIZES, _AUTO = "#1c2430", "#a9b8c9", "#d6604d", "#0f766e"


def main() -> int:
    """Rewrite, or check."""
    differing = [path for path, wanted in _wanted() if _differs(path, wanted)]
    if "--check" in sys.argv[1:]:
        for path in differing:
            print(f"{path.relative_to(ROOT)} is not what the results say; run: make results")
        return int(bool(differing))
    for path, wanted in _wanted():
        if path in differing:
            path.write_text(wanted, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 0


def _wanted() -> Iterator[tuple[Path, str]]:
    """Every file that has something measured in it, and what should be in it."""
    docs = ROOT / "docs"
    for path in (ROOT / "README.md", *sorted([*docs.rglob("*.md"), *docs.rglob("*.svg")])):
        if path.name not in PLOTS:
            text = path.read_text(encoding="utf-8")
            yield path, fill(text)
    for name, (draw, *results) in PLOTS.items():
        yield docs / "results" / name, _svg(draw(*map(read, results)), _origin(results))


def _differs(path: Path, wanted: str) -> bool:
    """Whether a file is not as wanted; a plot, whether it was drawn from other results.

    Other versions of Matplotlib and of its fonts draw the same numbers a little differently.
    """
    if not path.exists():
        return True
    text = path.read_text(encoding="utf-8")
    if path.name in PLOTS:
        return _origin(PLOTS[path.name][1:]) not in text
    return text != wanted


def fill(text: str) -> str:
    """Replace every table and every number of a text by what the results say.

    Raises:
        KeyError: If the text names something that nothing makes.
    """
    text = _TABLE.sub(lambda place: f"{place[1]}\n{TABLES[place[2]]()}\n{place[3]}", text)
    return _VALUE.sub(lambda place: f"{place[1]}{_value(place[2], place[3])}{place[4]}", text)


def _value(size: str, field: str) -> str:
    points = {point["submodel"]: point for point in read("tiny_imagenet_v2")["points"]}
    return f"{100 * points[size][field]:.0f} %"


def _origin(results: tuple[str, ...] | list[str]) -> str:
    """Name the results that a plot was drawn from, and what was in them."""
    return ", ".join(
        f"{name}.json {hashlib.sha256((RESULTS / f'{name}.json').read_bytes()).hexdigest()[:16]}"
        for name in results
    )


def _svg(figure: Figure, origin: str) -> str:
    stream = io.StringIO()
    # With a date, or ids drawn at random, the same numbers would not give the same file.
    with mpl.rc_context({"svg.hashsalt": "matvit"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Description": origin})
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def frontier(result: Row) -> Figure:
    """Draw recall against compute."""
    conditions = Conditions(**result["conditions"])
    points = [OperatingPoint.from_dict(point) for point in result["points"]]
    return plot(ParetoFrontier(points), caption=format_conditions(conditions))


def per_query(result: Row) -> Figure:
    """Draw queries that choose for themselves against one size for all."""
    figure = Figure(figsize=(10.5, 4.8), facecolor="white", layout="constrained")
    titles = {
        "with_labels": "first hits of the query's label",
        "without_labels": "the full encoder's first hits",
    }
    for axes, part in zip(figure.subplots(1, 2), titles, strict=True):
        _draw_sizes(axes, result[part]["static"])
        _draw_ladders(axes, result[part])
        axes.set_title(titles[part], fontsize=11, color=_INK)
        axes.set_xlabel("mean compute, % of the full encoder's")
        axes.set_ylabel("% of queries")
        axes.grid(color="#e6e9ed")
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle("Queries that choose for themselves", x=0.02, ha="left", fontweight="bold")
    return figure


def _draw_sizes(axes: Axes, statics: list[Row]) -> None:
    """Draw submodels that answer every query."""
    sizes = [row for row in statics if row["submodel"] in TRAINED]
    every = {"color": _STATIC, "markersize": 4, "label": "one size for all queries"}
    axes.plot(*_places(statics), "o", **every)
    axes.plot(*_places(sizes), "o", color=_SIZES, markersize=8, label="trained sizes")
    for row, *place in zip(sizes, *_places(sizes), strict=True):
        axes.annotate(row["submodel"], place, (6, -12), textcoords="offset points", color=_INK)


def _draw_ladders(axes: Axes, part: Row) -> None:
    """Draw what each ladder finds at every threshold."""
    found = {tuple(row["ladder"]): row["curve"] for row in part["auto"] if row["ladder"]}
    for (ladder, curve), style in zip(found.items(), ("-", "--", ":"), strict=False):
        inside = [(100 * macs, 100 * (part["full"] - lost)) for macs, lost in curve if macs <= 1.02]
        axes.plot(
            *zip(*inside, strict=True), color=_AUTO, linewidth=2, linestyle=style,
            label=" → ".join(ladder),
        )  # fmt: skip


def _places(rows: list[Row]) -> tuple[list[float], list[float]]:
    return [100 * row["macs_fraction"] for row in rows], [100 * row["right"] for row in rows]


PLOTS: dict[str, tuple[Callable[..., Figure], str]] = {
    "frontier.svg": (frontier, "tiny_imagenet"),
    "per-query.svg": (per_query, "per_query_tiny_imagenet"),
}


if __name__ == "__main__":
    sys.exit(main())
