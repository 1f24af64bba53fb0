"""Tables of what submodels find, and of choosing among them."""

from __future__ import annotations

import numpy as np

from tables.text import TRAINED, Row, read, source, table, with_gmacs


def front() -> str:
    """Say the whole story in four rows."""
    columns = {
        "size": "**{submodel}**",
        "compute of a query": "{macs_fraction:.0%}",
        "right first hits": "{hit_rate@1:.1%}",
        "of the full encoder's": "{retained_hit_rate@1:.1%}",
        "of its ten hits": "{overlap@10:.0%}",
    }
    return table(columns, _trained(read("tiny_imagenet_v2")))


def headline() -> str:
    """Say in a sentence what each smaller size saves and costs."""
    points = {point["submodel"]: point for point in read("tiny_imagenet_v2")["points"]}
    full = points["XL"]
    saved = [
        f"{name} saves {1 - points[name]['macs_fraction']:.0%} of the compute for "
        f"{100 * (full['hit_rate@1'] - points[name]['hit_rate@1']):.1f} points"
        for name in ("L", "M", "S")
    ]
    return f"Of hit_rate@1, {', '.join(saved[:-1])}, and {saved[-1]}.\n"


def sizes(name: str) -> str:
    """Quality and speed of the trained sizes, and of the one that was recommended."""
    result = read(name)
    columns = {
        "size": "{submodel}",
        "GMACs": "{gmacs:.3f}",
        "of full": "{macs_fraction:.0%}",
        "hit_rate@1": "{hit_rate@1:.4f}",
        "retained": "{retained_hit_rate@1:.1%}",
        "map@r": "{map@r:.4f}",
        "recall@10": "{recall@10:.4f}",
        "overlap@10": "{overlap@10:.3f}",
        "ms, one image": "{latency_ms_p50:.1f}",
        "images/s": "{images_per_s:,.0f}",
    }
    summary = f"\n{result['summary']}\n" if result.get("summary") else ""
    return table(columns, _trained(result)) + summary + source(result)


def _trained(result: Row) -> list[Row]:
    shown = (*TRAINED, result.get("recommended"))
    return [with_gmacs(point) for point in result["points"] if point["submodel"] in shown]


def mixes() -> str:
    """Every Mix'n'Match submodel against the straight line between the trained sizes."""
    result = read("tiny_imagenet")
    points = sorted(map(with_gmacs, result["points"]), key=lambda point: point["macs"])
    line = [point for point in points if point["submodel"] in TRAINED]
    mixed = [point for point in points if point["submodel"] not in TRAINED]
    said = []
    for measure in ("hit_rate@1", "overlap@10"):
        heights = [np.interp(point["macs"], *_curve(line, measure)) for point in mixed]
        gaps = [point[measure] - height for point, height in zip(mixed, heights, strict=True)]
        for point, gap in zip(mixed, gaps, strict=True):
            point[f"{measure} to the line"] = gap
        worst = int(np.argmin(gaps))
        said.append(
            f"By {measure}, {sum(gap >= 0 for gap in gaps)} of {len(mixed)} mixes lie on or above "
            f"the straight line between the trained sizes, half of them at {np.median(gaps):+.4f} "
            f"or better, the worst ({mixed[worst]['submodel']}) at {gaps[worst]:+.4f}."
        )
    columns = {
        "mix": "{submodel}",
        "GMACs": "{gmacs:.3f}",
        "of full": "{macs_fraction:.0%}",
        "hit_rate@1": "{hit_rate@1:.4f}",
        "above the line": "{hit_rate@1 to the line:+.4f}",
        "overlap@10": "{overlap@10:.4f}",
        "above its line": "{overlap@10 to the line:+.4f}",
    }
    return (
        f'{" ".join(said)}\n\n<details markdown="1"><summary>All mixes</summary>\n\n'
        f"{table(columns, mixed)}{source(result)}\n</details>\n"
    )


def _curve(points: list[Row], measure: str) -> tuple[list[float], list[float]]:
    return [point["macs"] for point in points], [point[measure] for point in points]


def agreement() -> str:
    """Symmetric against asymmetric search, and how far the sizes agree."""
    result = read("agreement")
    columns = {
        "size": "{submodel}",
        "GMACs": "{gmacs:.3f}",
        "asks the full index": "{hit_rate@1:.4f}",
        "asks its own": "{symmetric_hit_rate@1:.4f}",
        "difference": "{difference:+.4f} ± {difference_standard_error:.4f}",
        "cosine to full": "{cosine:.3f}",
        "rank correlation": "{rank_correlation:.3f}",
        "top-1 of the classifier": "{top1:.4f}",
        "agrees with full": "{top1_agreement:.3f}",
        "KL, nats": "{kl_divergence:.3f}",
    }
    rows = [
        {**with_gmacs(row), "difference": row["hit_rate@1"] - row["symmetric_hit_rate@1"]}
        for row in result["rows"]
    ]
    return table(columns, rows) + source(result)


def label_free(name: str) -> str:
    """What a conversion without a step of training keeps: overlap@10 and cosine."""
    result = read(name)
    sizes = result["stages"][0]["rows"]
    columns = {"hidden units": "{stage}", "seconds": "{seconds:.0f}"}
    columns |= {
        f"{row['submodel']} ({row['macs_fraction']:.0%})": f"{{cells[{place}]}}"
        for place, row in enumerate(sizes)
    }
    rows = [
        {
            **stage,
            "cells": [f"{row['overlap@10']:.3f}, {row['cosine']:.3f}" for row in stage["rows"]],
        }
        for stage in result["stages"]
    ]
    return table(columns, rows) + source(result)


def strategies() -> str:
    """What the choices of each way to search the submodels keep, on three data sets."""
    titles = {
        "tiny_imagenet": "Tiny ImageNet", "grocery": "Groceries", "digits": "Handwritten digits",
    }  # fmt: skip
    return "\n".join(_strategies(f"strategies_{name}", titles[name]) for name in titles)


def two_axes(name: str, title: str) -> str:
    """What each budget of compute buys with widths alone, and with merged tokens too."""
    result = read(name)
    columns = {
        "at most": "{budget:.0%}",
        "widths alone": "{one[submodel]}",
        "costs": "{one[macs]}",
        "overlap@10": "{one[overlap]}",
        "retained hit rate": "{one[hits]}",
        "both axes": "{both[submodel]}",
        "costs ": "{both[macs]}",
        "overlap@10 ": "{both[overlap]}",
        "retained hit rate ": "{both[hits]}",
        "more": "{more}",
    }
    rows = [
        {
            "budget": row["budget"],
            "one": _bought(row["one axis"]),
            "both": _bought(row["both"]),
            "more": f"{row['gained']:+.3f} ± {row['gained_error']:.3f}" if "gained" in row else "",
        }
        for row in result["budgets"]
        if row["both"] is not None
    ]
    return (
        f"{title}, {result['selected_with']:,} queries to choose by, {result['judged_with']:,} "
        f"others to measure with, {result['images']:,} images:\n\n"
        + table(columns, rows)
        + source(result)
    )


def _bought(row: Row | None) -> Row:
    """Write down what a budget buys; nothing if it buys nothing."""
    if row is None:
        return dict.fromkeys(("submodel", "macs", "overlap", "hits"), "")
    hits = row.get("retained_hit_rate@1")
    return {
        "submodel": f"`{row['submodel']}`",
        "macs": f"{row['macs_fraction']:.0%}",
        "overlap": f"{row['overlap@10']:.3f}",
        "hits": "" if hits is None else f"{hits:.3f}",
    }


def _strategies(name: str, title: str) -> str:
    result = read(name)
    rows: dict[str, Row] = {}
    for row in result["rows"]:
        mine = rows.setdefault(row["strategy"], {"strategy": row["strategy"], **row})
        mine[f"at {row['budget']:.0%}"] = _beside_the_rule(row)
    budgets = [f"at {budget:.0%}" for budget in sorted({row["budget"] for row in result["rows"]})]
    columns = {"strategy": "{strategy}", "submodels measured": "{measured}"}
    columns |= {budget: f"{{{budget}}}" for budget in budgets}
    empty = dict.fromkeys(budgets, "")
    return (
        f"{title}, {result['selecting']:,} queries to choose by, {result['reporting']:,} others to "
        f"measure overlap@10 with, {result['images']:,} images:\n\n"
        + table(columns, [empty | row for row in rows.values()])
        + source(result)
    )


def _beside_the_rule(row: Row) -> str:
    """Overlap, and in brackets its difference to that of the paper's rule."""
    value = f"{row['overlap@10']:.3f}"
    if row["strategy"] == "paper" or row["overlap_minus_paper"] == 0:
        return value
    return f"{value} ({row['overlap_minus_paper']:+.3f} ± {row['overlap_error']:.3f})"


def per_query(name: str, *, timed: bool) -> str:
    """Queries that choose for themselves, against one size for all."""
    result = read(name)
    columns = {
        "bound, points": "{bound:g}",
        "ladder": "{ladder}",
        "mean compute": "{compute}",
        "points lost": "{lost}",
        "best static at that compute": "{static}",
        "aimed at 0.5 points": "{half_a_point}",
        "at 0.1": "{a_tenth}",
    }
    columns |= {"ms to encode": "{ms}"} if timed else {}
    parts = [
        f"{result['images']:,} images, {part.replace('_', ' ')}, {result[part]['reporting']:,} "
        f"queries; the full encoder's first hit is right for {result[part]['full']:.1%}:\n\n"
        + table(columns, [_ladder(row, result[part]["static"]) for row in result[part]["auto"]])
        for part in ("with_labels", "without_labels")
    ]
    return "\n".join(parts) + source(result)


def _ladder(row: Row, statics: list[Row]) -> Row:
    empty = ("compute", "lost", "static", "half_a_point", "a_tenth", "ms")
    cells = {"bound": 100 * row["max_loss"], "ladder": "none found", **dict.fromkeys(empty, "")}
    if row["ladder"] is None:
        return cells
    first = row["ladder"][0]
    cells["ladder"] = " → ".join(row["ladder"]) if row["goes_on"] else f"{first} alone"
    cells["compute"] = f"{row['macs_fraction']:.0%}"
    cells["lost"] = f"{100 * row['lost']:+.1f} ± {100 * row['lost_error']:.1f}"
    within = [each for each in statics if each["macs_fraction"] <= row["macs_fraction"]]
    if within:
        best = min(within, key=lambda each: each["lost"])
        cells["static"] = f"{100 * best['lost']:+.1f} ({best['submodel']})"
    cells["ms"] = "{auto:.1f} (S {S:.1f}, L {L:.1f}, XL {XL:.1f})".format(**row["milliseconds"])
    for cell, points in {"half_a_point": "0.5", "a_tenth": "0.1"}.items():
        compute, lost = row["aimed_at_points_lost"][points]
        below = f"{compute:.0%} ({100 * lost:+.1f})"
        cells[cell] = below if compute < 1 else "not below full"
    return cells


def voting() -> str:
    """What the labels of the hits are worth without asking again."""
    rows = {
        row["submodel"]: row for row in read("per_query_tiny_imagenet")["with_labels"]["static"]
    }
    said = ", ".join(
        f"{name} {rows[name]['right']:.3f} to {rows[name]['voting']:.3f}" for name in TRAINED
    )
    return (
        "Putting the hit first whose label has the most weight among the ten takes hit_rate@1 "
        f"of {said}, at no cost.\n"
    )


def continued() -> str:
    """What going on saves against starting again."""
    result = read("per_query_tiny_imagenet")
    columns = {
        "first": "{first}",
        "then": "{second}",
        "GMACs alone": "{gmacs:.3f}",
        "GMACs added": "{added_gmacs:.3f}",
        "GMACs saved": "{saved_macs:.0%}",
        "ms alone": "{ms:.1f}",
        "ms added": "{added_ms:.1f}",
        "ms saved": "{saved_ms:.0%}",
        "largest difference": "{largest_difference:g}",
    }
    rows = [
        {
            **with_gmacs(row),
            "added_gmacs": row["added_macs"] / 1e9,
            "saved_macs": 1 - row["added_macs"] / row["macs"],
            "saved_ms": 1 - row["added_ms"] / row["ms"],
        }
        for row in result["continued"]
    ]
    return table(columns, rows) + source(result)


def tuned() -> str:
    """Stored frontiers against what other queries found, and milliseconds."""
    result = read("tuned")
    gaps = [abs(row["predicted_overlap"] - row["realised_overlap"]) for row in result["rows"]]
    submodels = {
        "submodel": "{submodel}",
        "of full": "{macs_fraction:.0%}",
        "overlap@10 predicted": "{predicted_overlap:.3f}",
        "overlap@10 realised": "{realised_overlap:.3f}",
        "retained predicted": "{predicted_retained:.3f}",
        "retained realised": "{realised_retained:.3f}",
    }
    budgets = {
        "--max-ms": "{max_ms:.2f}",
        "picks": "{submodel}",
        "ms when tuned": "{predicted_ms:.2f}",
        "ms timed again": "{measured_ms:.2f}",
    }
    return (
        f"Tuning with {result['tuned_with']:,} altered images of an index of {result['images']:,} "
        f"measured {result['measured']} submodels in {result['seconds']:.0f} s. Predicted from "
        f"{result['predicted_from']:,} of them, realised by {result['asked']:,} images that are "
        f"not in it; the overlaps differ by {np.mean(gaps):.3f} on average and {max(gaps):.3f} at "
        f"most:\n\n{table(submodels, result['rows'])}\n"
        f"{table(budgets, result['budgets'])}{source(result)}"
    )


def encoders() -> str:
    """The bundled encoders beside each other."""
    columns = {
        "encoder": "`{encoder}`",
        "images": "{images}",
        "XL": "{XL:.4f}",
        "L": "{L:.4f}",
        "M": "{M:.4f}",
        "S": "{S:.4f}",
        "S retains": "{retained:.1%}",
        "overlap@10 of S": "{overlap:.3f}",
    }
    rows, sources = [], []
    for images, name in (("Tiny ImageNet", "tiny_imagenet"), ("groceries", "grocery")):
        for end in ("", "_v2"):
            result = read(name + end)
            points = {point["submodel"]: point for point in result["points"]}
            rows.append({
                "encoder": result["conditions"]["encoder"],
                "images": images,
                "retained": points["S"]["retained_hit_rate@1"],
                "overlap": points["S"]["overlap@10"],
                **{size: points[size]["hit_rate@1"] for size in TRAINED},
            })  # fmt: skip
            sources.append(source(result))
    return table(columns, rows) + "".join(sources)
