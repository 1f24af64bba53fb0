"""Results of benchmarks as Markdown.

A column is a heading and how to write a row's value below it: `{"of full": "{macs_fraction:.0%}"}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results"
TRAINED = ("S", "M", "L", "XL")
Row = dict[str, Any]


def read(name: str) -> Row:
    """Read the result of a benchmark.

    Raises:
        FileNotFoundError: If it has none yet.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path.name}; run the benchmark that writes it")
    result: Row = json.loads(path.read_text(encoding="utf-8"))
    return result


def table(columns: dict[str, str], rows: Iterable[Row]) -> str:
    """Lay out a table: the first column to the left, the others to the right."""
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[text.format(**row) for text in columns.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def source(result: Row) -> str:
    """Say where numbers come from: device, threads, commit, versions, command; and any remark."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    changed = " with changes" if result["uncommitted_changes"] else ""
    origin = (
        f"{result['device']}, {result['threads']} threads, commit {result['commit'][:10]}{changed}"
        f", {versions}; `{result['command'].strip()}`"
    )
    note = result.get("note", "")
    remark = f"\n<sub>{note[0].upper()}{note[1:]}.</sub>\n" if note else ""
    return f"\n<sub>{origin}</sub>\n{remark}"


def with_gmacs(row: Row) -> Row:
    """Add the compute of a row in GMACs."""
    return {**row, "gmacs": row["macs"] / 1e9}


def rows_of(name: str, columns: dict[str, str]) -> str:
    """Lay out the rows of a result as they are, and say where they come from."""
    result = read(name)
    return table(columns, result["rows"]) + source(result)
