"""Draw queries that choose for themselves against one size for all, from the committed results.

python benchmarks/choice_plot.py          writes docs/per-query.png
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from table_text import result

OUT = Path(__file__).parent.parent / "docs" / "per-query.png"
_TRAINED = ("S", "M", "L", "XL")
_INK, _STATIC, _SIZES, _AUTO = "#1c2430", "#a9b8c9", "#d6604d", "#0f766e"


def main() -> None:
    """Draw and write."""
    figure = Figure(figsize=(10.5, 4.8), facecolor="white", layout="constrained")
    measured = result("per_query_tiny_imagenet")
    axes = figure.subplots(1, 2)
    for each, part, title in zip(
        axes,
        ("with_labels", "without_labels"),
        ("first hits of the query's label", "the full encoder's first hits"),
        strict=True,
    ):
        _draw(each, measured[part], title)
    figure.suptitle("Queries that choose for themselves", x=0.02, ha="left", fontweight="bold")
    figure.savefig(OUT, dpi=150, metadata={"Software": None})
    print(f"wrote {OUT}")


def _draw(axes: Axes, part: dict, title: str) -> None:  # type: ignore[type-arg]
    statics = part["static"]
    axes.plot(
        [100 * row["macs_fraction"] for row in statics],
        [100 * row["right"] for row in statics],
        "o", color=_STATIC, markersize=4, label="one size for all queries",
    )  # fmt: skip
    sizes = [row for row in statics if row["submodel"] in _TRAINED]
    axes.plot(
        [100 * row["macs_fraction"] for row in sizes],
        [100 * row["right"] for row in sizes],
        "o", color=_SIZES, markersize=8, label="trained sizes",
    )  # fmt: skip
    for row in sizes:
        place = (100 * row["macs_fraction"], 100 * row["right"])
        axes.annotate(row["submodel"], place, (6, -12), textcoords="offset points", color=_INK)
    drawn = set()
    for row in part["auto"]:
        if row["ladder"] is None or tuple(row["ladder"]) in drawn:
            continue
        drawn.add(tuple(row["ladder"]))
        inside = [point for point in row["curve"] if point[0] <= 1.02]
        axes.plot(
            [100 * macs for macs, _ in inside],
            [100 * (part["full"] - lost) for _, lost in inside],
            color=_AUTO, linewidth=2, linestyle=("-", "--", ":")[len(drawn) - 1],
            label=" → ".join(row["ladder"]),
        )  # fmt: skip
    axes.set_title(title, fontsize=11, color=_INK)
    axes.set_xlabel("mean compute, % of the full encoder's")
    axes.set_ylabel("% of queries")
    axes.grid(color="#e6e9ed")
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


if __name__ == "__main__":
    main()
