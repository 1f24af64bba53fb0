"""Tables of the README about choosing submodels: strategies, per-query choice, stored frontiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from table_text import markdown, result, source


def strategies_table() -> str:
    """What each strategy's choices keep, on three data sets."""
    return "\n".join(
        _strategies(f"strategies_{name}", title)
        for name, title in (
            ("tiny_imagenet", "Tiny ImageNet"),
            ("grocery", "Groceries"),
            ("digits", "Handwritten digits"),
        )
    )


def _strategies(name: str, title: str) -> str:
    measured = result(name)
    rows = measured["rows"]
    budgets = sorted({row["budget"] for row in rows})
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    head = ["strategy", "submodels measured", *(f"at {budget:.0%}" for budget in budgets)]
    lines = []
    for strategy in names:
        mine = {row["budget"]: row for row in rows if row["strategy"] == strategy}
        cells = [_overlap(mine.get(budget), strategy) for budget in budgets]
        lines.append([strategy, str(next(iter(mine.values()))["measured"]), *cells])
    head_line = (
        f"{title}, {measured['selecting']:,} queries to choose by, {measured['reporting']:,} "
        f"others to measure overlap@10 with, {measured['images']:,} images:\n\n"
    )
    return head_line + markdown(head, lines) + source(measured)


def _overlap(row: dict[str, Any] | None, strategy: str) -> str:
    if row is None:
        return ""
    value = f"{row['overlap@10']:.3f}"
    if strategy == "paper" or row["overlap_minus_paper"] == 0:
        return value
    return f"{value} ({row['overlap_minus_paper']:+.3f} ± {row['overlap_error']:.3f})"


def per_query_table() -> str:
    """Queries that choose for themselves, against one size for all."""
    return _per_query("per_query_tiny_imagenet", timed=True)


def per_query_grocery_table() -> str:
    """The same on photographs of a kind that the encoder never saw; measured beside other work."""
    return _per_query("per_query_grocery", timed=False)


def _per_query(name: str, *, timed: bool) -> str:
    measured = result(name)
    parts = []
    for part, title in (("with_labels", "with labels"), ("without_labels", "without labels")):
        here = measured[part]
        statics = here["static"]
        lines = []
        for row in here["auto"]:
            bound = f"{100 * row['max_loss']:g}"
            if row["ladder"] is None:
                lines.append([bound, "none found", *[""] * (6 if timed else 5)])
                continue
            ladder = " → ".join(row["ladder"]) if row["goes_on"] else f"{row['ladder'][0]} alone"
            ms = row["milliseconds"]
            beside = [each for each in statics if each["macs_fraction"] <= row["macs_fraction"]]
            best = min(beside, key=lambda each: each["lost"], default=None)
            lines.append(
                [
                    bound,
                    ladder,
                    f"{row['macs_fraction']:.0%}",
                    f"{100 * row['lost']:+.1f} ± {100 * row['lost_error']:.1f}",
                    "" if best is None else f"{100 * best['lost']:+.1f} ({best['submodel']})",
                    *(_aimed(*row["aimed_at_points_lost"][key]) for key in ("0.5", "0.1")),
                ]
            )
            if timed:
                lines[-1].append(
                    f"{ms['auto']:.1f} (S {ms['S']:.1f}, L {ms['L']:.1f}, XL {ms['XL']:.1f})"
                )
        head = [
            "bound, points", "ladder", "mean compute", "points lost", "best static at that compute",
            "aimed at 0.5 points", "at 0.1",
        ]  # fmt: skip
        head += ["ms to encode"] if timed else []
        intro = (
            f"{measured['images']:,} images, {title}, {here['reporting']:,} queries; the full "
            f"encoder's first hit is right for {here['full']:.1%}:\n\n"
        )
        parts.append(intro + markdown(head, lines))
    return "\n".join(parts) + source(measured)


def _aimed(macs_fraction: float, lost: float) -> str:
    if macs_fraction >= 1:
        return "not below full"
    return f"{macs_fraction:.0%} ({100 * lost:+.1f})"


def voting_note() -> str:
    """What the labels of the hits are worth without any escalation."""
    measured = result("per_query_tiny_imagenet")
    rows = {row["submodel"]: row for row in measured["with_labels"]["static"]}
    said = [f"{name} {rows[name]['right']:.3f} to {rows[name]['voting']:.3f}" for name in "SML"]
    said.append(f"XL {rows['XL']['right']:.3f} to {rows['XL']['voting']:.3f}")
    return (
        "Putting the hit first whose label has the most weight among the ten takes hit_rate@1 "
        f"of {', '.join(said)}, at no cost.\n"
    )


def continued_table() -> str:
    """What going on saves against starting again."""
    measured = result("per_query_tiny_imagenet")
    head = [
        "first", "then", "GMACs alone", "added", "saved", "ms alone", "added", "saved",
        "largest difference",
    ]  # fmt: skip
    lines = [
        [
            row["first"],
            row["second"],
            f"{row['macs'] / 1e9:.3f}",
            f"{row['added_macs'] / 1e9:.3f}",
            f"{1 - row['added_macs'] / row['macs']:.0%}",
            f"{row['ms']:.1f}",
            f"{row['added_ms']:.1f}",
            f"{1 - row['added_ms'] / row['ms']:.0%}",
            f"{row['largest_difference']:g}",
        ]
        for row in measured["continued"]
    ]
    return markdown(head, lines) + source(measured)


def tuned_table() -> str:
    """Stored frontiers against what other queries found, and milliseconds."""
    measured = result("tuned")
    rows = measured["rows"]
    gaps = [abs(row["predicted_overlap"] - row["realised_overlap"]) for row in rows]
    head = ["submodel", "of full", "predicted overlap@10", "realised", "retained", "realised"]
    lines = [
        [
            row["submodel"],
            f"{row['macs_fraction']:.0%}",
            f"{row['predicted_overlap']:.3f}",
            f"{row['realised_overlap']:.3f}",
            f"{row['predicted_retained']:.3f}" if "predicted_retained" in row else "",
            f"{row['realised_retained']:.3f}" if "realised_retained" in row else "",
        ]
        for row in rows
    ]
    budgets = [
        [
            f"{row['max_ms']:.2f}",
            row["submodel"],
            f"{row['predicted_ms']:.2f}",
            f"{row['measured_ms']:.2f}",
        ]
        for row in measured["budgets"]
    ]
    return (
        f"Tuning with {measured['tuned_with']:,} altered images of an index of "
        f"{measured['images']:,} measured {measured['measured']} submodels in "
        f"{measured['seconds']:.0f} s. Predicted from {measured['predicted_from']:,} of them, "
        f"realised by {measured['asked']:,} images that are not in it; the overlaps differ by "
        f"{sum(gaps) / len(gaps):.3f} on average and {max(gaps):.3f} at most:\n\n"
        + markdown(head, lines)
        + "\n"
        + markdown(["--max-ms", "picks", "ms when tuned", "ms timed again"], budgets)
        + source(measured)
    )


def metrics_note() -> str:
    """How long judging takes."""
    measured = result("metrics")
    spent = measured["seconds"]
    judged = sum(spent[name] for name in ("hit_rate@1", "recall@10", "overlap@10", "map@r"))
    return (
        f"Judging {measured['queries']:,} queries against {measured['images']:,} images takes "
        f"{judged:.2f} s for all metrics together (MAP@R looks at {measured['ranks_of_map']} "
        f"ranks), beside {spent['search 10'] + spent['search R']:.0f} s of exact search for them; "
        f"memory grows by {measured['peak_mb_above_the_index']:.0f} MB.\n" + source(measured)
    )


def page_table() -> str:
    """What the page costs."""
    measured = result("page")
    head = [
        "images", "first view, s", "with a cold server", "a query in the browser, s",
        "its share of the server, ms", "bare search, ms", "server MB after 1 query", "after 200",
        "after 200 more in haste",
    ]  # fmt: skip
    lines = [
        [
            f"{row['images']:,}",
            f"{row['first_view_s']:.1f}",
            f"{row['first_view_cold_s']:.1f}",
            f"{row['query_browser_ms'] / 1000:.2f}",
            f"{row['query_server_ms']:.0f}",
            f"{row['bare_ms']:.0f}",
            f"{row['server_mb'][0]:,.0f}",
            f"{row['server_mb'][-1]:,.0f}",
            f"{row['hasty_mb'][-1]:,.0f}",
        ]
        for row in measured["rows"]
    ]
    return markdown(head, lines) + source(measured)


TABLES: dict[str, Callable[[], str]] = {
    "strategies": strategies_table,
    "per_query": per_query_table,
    "per_query_grocery": per_query_grocery_table,
    "voting": voting_note,
    "continued": continued_table,
    "tuned": tuned_table,
    "metrics": metrics_note,
    "page": page_table,
}
