"""How the code is built, as numbers: files, floors, circles, faces, and calls of a query.

    python benchmarks/house.py [--source DIR] [--name NAME]

DIR is a checkout, by default this one; the result is `benchmarks/results/NAME.json`, by default
`house.json`. How imports are counted is in `imports.py`. Calls are those of functions of the four
packages, comprehensions aside; a jump is a call in another file than the call before.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from imports import PACKAGES, count_lines, measure_imports, parse, read_modules
from PIL import Image
from provenance import ROOT, provenance, without_paths, write_result

_IMAGES = 60
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def main() -> None:
    """Measure a checkout and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=ROOT)
    parser.add_argument("--name", default="house")
    parser.add_argument("--calls-only", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.calls_only:
        print(json.dumps(count_calls(given.source)))
        return
    source = given.source.resolve()
    command = "python benchmarks/house.py " + without_paths(sys.argv[1:])
    result = {
        **provenance(command.strip(), source),
        **measure_files(source),
        **measure_imports(read_modules(source)),
        **_calls_of(source),
    }
    write_result(given.name, result)


# --- files ------------------------------------------------------------------------------------


def measure_files(source: Path) -> dict[str, Any]:
    """Count files, lines and tests."""
    counted = {
        name: [count_lines(path) for path in sorted((source / name).rglob("*.py"))]
        for name in (*PACKAGES, "benchmarks", "tests")
    }
    in_product = [lines for name in PACKAGES for lines in counted[name]]
    return {
        "source": {"files": len(in_product), "lines": sum(in_product)},
        "folders": {
            name: {"files": len(lines), "lines": sum(lines), "longest": max(lines)}
            for name, lines in counted.items()
        },
        "test_functions": sum(
            isinstance(node, _FUNCTIONS) and node.name.startswith("test_")
            for path in (source / "tests").rglob("*.py")
            for node in ast.walk(parse(path))
        ),
    }


# --- calls ------------------------------------------------------------------------------------


def _calls_of(source: Path) -> dict[str, Any]:
    """Have the calls counted by a Python that imports the packages of that checkout."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, __file__, "--calls-only", "--source", str(source)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    counted: dict[str, Any] = json.loads(done.stdout)
    return counted


def count_calls(source: Path) -> dict[str, Any]:
    """Build an index of a few images with the bundled encoder, ask it, and count the calls."""
    import matvit
    from indexing import Corpus, ImageIndex
    from retrieval import Retriever

    assert Path(str(matvit.__file__)).is_relative_to(source), f"{matvit.__file__} was imported"
    encoder = matvit.MatViT.load("matvit-tiny64")
    with tempfile.TemporaryDirectory() as folder:
        photos, path = Path(folder) / "photos", Path(folder) / "photos.index"
        photos.mkdir()
        randomness = np.random.default_rng(0)
        for number in range(_IMAGES):
            pixels = randomness.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / f"{number:02}.png")
        building = watched(
            source, lambda: ImageIndex.build(encoder, Corpus.from_folder(photos), path)
        )
        retriever = Retriever(encoder, ImageIndex.open(path))

        def ask() -> None:
            retriever.search(photos / "07.png", "S", 10)

        ask()
        return {"build_of_60_images": building, "warm_query": watched(source, ask)}


def watched(source: Path, action: Callable[[], object]) -> dict[str, int]:
    """Do something, and count what it calls of a checkout, in all threads."""
    inside = tuple(f"{source}{os.sep}{package}{os.sep}" for package in PACKAGES)
    calls: dict[int, list[tuple[str, str]]] = {}  # of each thread

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        is_ours = event == "call" and code.co_filename.startswith(inside)
        if is_ours and not code.co_name.startswith("<"):
            mine = calls.setdefault(threading.get_ident(), [])
            mine.append((code.co_filename, code.co_qualname))

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    every = [call for mine in calls.values() for call in mine]
    return {
        "calls": len(every),
        "functions": len(set(every)),
        "files": len({file for file, _ in every}),
        "jumps": sum(
            one != other for mine in calls.values() for (one, _), (other, _) in pairwise(mine)
        ),
    }


if __name__ == "__main__":
    main()
