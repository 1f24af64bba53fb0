"""The demo's numbers: places in photographs that the encoder never saw, found again.

python benchmarks/demo.py
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from provenance import provenance, write_result

from app.demo import run_demo
from matvit import DEFAULT_ENCODER, MatViT


def main() -> None:
    """Run the demo and keep what it measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="Folder to keep the demo in.")
    parser.add_argument("--note", default="", help="What else was going on.")
    given = parser.parse_args()
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder) / "demo"
        made = run_demo(MatViT.load(DEFAULT_ENCODER), out, None, progress=True)
    conditions = made.frontier.conditions
    write_result(
        "demo",
        {
            **provenance("python benchmarks/demo.py"),
            "note": given.note,
            "seconds": round(perf_counter() - start, 1),
            "conditions": None if conditions is None else asdict(conditions),
            "recommended": made.recommended,
            "summary": made.summary,
            "points": [point.to_dict() for point in made.frontier],
        },
    )


if __name__ == "__main__":
    main()
