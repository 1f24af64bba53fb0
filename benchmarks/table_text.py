"""Results of benchmarks as Markdown, and where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def result(name: str) -> dict[str, Any]:
    """Read the result of a benchmark.

    Raises:
        FileNotFoundError: If it has none yet.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path.name}; run the benchmark that writes it")
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def source(result: dict[str, Any]) -> str:
    """Say where numbers come from: device, threads, commit, versions, command."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"\n<sub>{result['device']}, {result['threads']} threads, commit "
        f"{result['commit'][:10]}{' with changes' if result['uncommitted_changes'] else ''}, "
        f"{versions}; `{result['command']}`</sub>\n"
    )


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Lay out a table: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
