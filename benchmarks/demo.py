"""The demo's numbers: places in photographs that the encoder never saw, found again.

python benchmarks/demo.py
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from provenance import provenance, write_result

from app.demo import run_demo
from matvit import DEFAULT_ENCODER, MatViT


def main() -> None:
    """Run the demo in a temporary folder and keep what it measured."""
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = run_demo(MatViT.load(DEFAULT_ENCODER), Path(folder) / "demo", None, progress=True)
    conditions = made.frontier.conditions
    write_result(
        "demo",
        {
            **provenance("python benchmarks/demo.py"),
            "seconds": round(perf_counter() - start, 1),
            "conditions": None if conditions is None else asdict(conditions),
            "recommended": made.recommended,
            "summary": made.summary,
            "points": [point.to_dict() for point in made.frontier],
        },
    )


if __name__ == "__main__":
    main()
