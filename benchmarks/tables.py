"""Write the tables of the README from `benchmarks/results/*.json`.

    python benchmarks/tables.py            rewrite README.md
    python benchmarks/tables.py --check    exit 1 if README.md is not what the results say

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import choice_tables
import index_tables
import numpy as np
from table_text import markdown as _markdown
from table_text import result as _result
from table_text import source as _source

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TRAINED = ("S", "M", "L", "XL")
_PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Rewrite or check the README."""
    text = README.read_text(encoding="utf-8")
    wanted = fill(text)
    if "--check" in sys.argv[1:]:
        if text != wanted:
            print("README.md differs from benchmarks/results; run: python benchmarks/tables.py")
        return int(text != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


def fill(text: str) -> str:
    """Replace every table of a README by what the results say.

    Raises:
        KeyError: If the README names a table that nothing makes.
    """
    return _PLACE.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def retrieval_table() -> str:
    """Recall against compute of the four trained sizes on Tiny ImageNet."""
    return _sizes_table("tiny_imagenet")


def headline() -> str:
    """One sentence on each smaller size, and one on the mixed ones."""
    points = {point["submodel"]: point for point in _result("tiny_imagenet")["points"]}
    full = points["XL"]
    saved = [
        f"{name} saves {1 - points[name]['macs_fraction']:.0%} of the compute for "
        f"{100 * (full['hit_rate@1'] - points[name]['hit_rate@1']):.1f} points"
        for name in ("L", "M", "S")
    ]
    return f"Of hit_rate@1, {', '.join(saved[:-1])}, and {saved[-1]}.\n"


def mixes_table() -> str:
    """Every Mix'n'Match submodel against the straight line between the trained sizes."""
    result = _result("tiny_imagenet")
    points = sorted(result["points"], key=lambda point: point["macs"])
    line = [point for point in points if point["submodel"] in TRAINED]
    mixes = [point for point in points if point["submodel"] not in TRAINED]
    measures = ("hit_rate@1", "overlap@10")
    gaps = {
        measure: [
            point[measure]
            - float(np.interp(point["macs"], [p["macs"] for p in line], [p[measure] for p in line]))
            for point in mixes
        ]
        for measure in measures
    }
    rows = [
        [
            point["submodel"],
            f"{point['macs'] / 1e9:.3f}",
            f"{point['macs_fraction']:.0%}",
            *(
                cell
                for measure in measures
                for cell in (f"{point[measure]:.4f}", f"{gaps[measure][row]:+.4f}")
            ),
        ]
        for row, point in enumerate(mixes)
    ]
    head = ["mix", "GMACs", "of full", "hit_rate@1", "to the line", "overlap@10", "to the line"]
    said = " ".join(
        f"By {measure}, {sum(gap >= 0 for gap in gaps[measure])} of {len(mixes)} mixes lie on or "
        f"above the straight line between the trained sizes, half of them at "
        f"{np.median(gaps[measure]):+.4f} or better, the worst ({mixes[worst]['submodel']}) at "
        f"{gaps[measure][worst]:+.4f}."
        for measure in measures
        for worst in [int(np.argmin(gaps[measure]))]
    )
    return (
        f"{said}\n\n<details><summary>All mixes</summary>\n\n"
        + _markdown(head, rows)
        + _source(result)
        + "\n</details>\n"
    )


def agreement_table() -> str:
    """Symmetric against asymmetric search, and how far the sizes agree."""
    result = _result("agreement")
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "size": lambda row: row["submodel"],
        "GMACs": lambda row: f"{row['macs'] / 1e9:.3f}",
        "asks the full index": lambda row: f"{row['hit_rate@1']:.4f}",
        "asks its own": lambda row: f"{row['symmetric_hit_rate@1']:.4f}",
        "difference": lambda row: (
            f"{row['hit_rate@1'] - row['symmetric_hit_rate@1']:+.4f}"
            f" ± {row['difference_standard_error']:.4f}"
        ),
        "cosine to full": lambda row: f"{row['cosine']:.3f}",
        "rank correlation": lambda row: f"{row['rank_correlation']:.3f}",
        "top-1 of the classifier": lambda row: f"{row['top1']:.4f}",
        "agrees with full": lambda row: f"{row['top1_agreement']:.3f}",
        "KL, nats": lambda row: f"{row['kl_divergence']:.3f}",
    }
    if "rank_correlation" not in result["rows"][0]:
        del columns["rank correlation"]
    rows = [[show(row) for show in columns.values()] for row in result["rows"]]
    return _markdown(list(columns), rows) + _source(result)


def recipes_table() -> str:
    """Ways to train, at equal training compute."""
    result = _result("recipes")
    names = [*TRAINED, "3xM,3xL", "3xS,3xXL"]
    rows = []
    for row in sorted(result["rows"], key=lambda row: (row["recipe"], row["seed"])):
        points = {point["submodel"]: point for point in row["points"]}
        if len(points) == 1:  # trained apart: its own full size is one of ours
            size = row["recipe"].removeprefix("apart ")
            points = {size: points["XL"]}
        cells = [f"{points[name]['hit_rate@1']:.4f}" if name in points else "" for name in names]
        own = [
            f"{points[name]['symmetric_hit_rate@1']:.4f}" if name in points else ""
            for name in ("S", "M")
        ]
        rows.append([row["recipe"], str(row["seed"]), f"{row['seconds']:.0f}", *cells, *own])
    head = ["recipe", "seed", "seconds", *names, "S asks its own", "M asks its own"]
    crossed = ", ".join(
        f"{name.removeprefix('apart ')} {share:.4f}"
        for name, share in result["apart_asking_joint"].items()
    )
    return (
        _markdown(head, rows)
        + f"\nThose trained apart, asking the index of the jointly trained one: {crossed}.\n"
        + _source(result)
    )


def grocery_table() -> str:
    """Classes never seen."""
    return _sizes_table("grocery")


def digits_table() -> str:
    """The same on the demo's handwritten digits."""
    return _sizes_table("demo")


def _sizes_table(name: str) -> str:
    result = _result(name)
    first = result["points"][0]
    at_k = next(key for key in first if key.startswith("recall@"))
    overlap = next(key for key in first if key.startswith("overlap@"))
    head = [
        "size", "GMACs", "of full", "hit_rate@1", "retained", "map@r", at_k, overlap,
        "ms, one image", "images/s",
    ]  # fmt: skip
    rows = [
        [
            point["submodel"],
            f"{point['macs'] / 1e9:.3f}",
            f"{point['macs_fraction']:.0%}",
            f"{point['hit_rate@1']:.4f}",
            f"{point['retained_hit_rate@1']:.1%}",
            f"{point['map@r']:.4f}",
            f"{point[at_k]:.4f}",
            f"{point[overlap]:.3f}",
            f"{point['latency_ms_p50']:.1f}",
            f"{point['images_per_s']:.0f}",
        ]
        for point in result["points"]
        if point["submodel"] in (*TRAINED, result.get("recommended"))
    ]
    summary = f"\n{result['summary']}\n" if result.get("summary") else ""
    return _markdown(head, rows) + summary + _source(result)


def joint_step_table() -> str:
    """A joint training step against the naive way."""
    result = _result("joint_step")
    rows = [
        [
            "{dim} x {depth}, {img} px".format(**row["shape"]),
            str(row["tokens"]),
            f"{row['joint_ms']:.0f}",
            f"{row['naive_ms']:.0f}",
            f"{row['ratio']:.2f} ({' to '.join(f'{q:.2f}' for q in row['ratio_quartiles'])})",
            f"{row['ratio_of_macs']:.2f}",
        ]
        for row in result["rows"]
    ]
    head = ["model", "tokens", "ours, ms", "naive, ms", "ratio (quartiles)", "ratio of MACs"]
    return _markdown(head, rows) + _source(result)


def training_split_table() -> str:
    """Where the time of a training step goes."""
    result = _result("training_split")
    spent = result["milliseconds"]
    rows = [[name, f"{ms:.1f}", f"{ms / spent['step']:.1%}"] for name, ms in spent.items()]
    return (
        _markdown(["part of a step", "ms", "share"], rows)
        + f"\nDecoding the {result['images']:,} images once, before the first step, took "
        f"{result['decoding_seconds']:.1f} s.\n" + _source(result)
    )


TABLES: dict[str, Callable[[], str]] = {
    "retrieval": retrieval_table,
    "digits": digits_table,
    "headline": headline,
    "mixes": mixes_table,
    "agreement": agreement_table,
    "recipes": recipes_table,
    "grocery": grocery_table,
    "joint_step": joint_step_table,
    "training_split": training_split_table,
    **index_tables.TABLES,
    **choice_tables.TABLES,
}


if __name__ == "__main__":
    sys.exit(main())
