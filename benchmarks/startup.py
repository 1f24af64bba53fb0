"""Seconds and megabytes of a command from the shell, such as one search.

    python benchmarks/startup.py [--turns 7] [--python PYTHON]

Each command is a process of its own, in turns; the second turn on counts, when the files are in
the cache of the system and Python has kept what it compiled. PYTHON may be that of an environment
without torch.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

COMMANDS = {
    "search": ["search", "INDEX", "IMAGE", "--submodel", "S"],
    "search XL": ["search", "INDEX", "IMAGE"],
    "search int8": ["search", "INDEX", "IMAGE", "--submodel", "S:int8"],
    "info": ["index", "info", "INDEX"],
    "help": ["--help"],
}
_PHOTOS = 200


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--name", default="startup")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        photos, index = Path(work) / "photos", Path(work) / "index"
        write_photos(photos)
        run(given.python, ["index", "build", str(photos), "--out", str(index)])
        places = {"INDEX": str(index), "IMAGE": str(photos / "0.ppm")}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
        for _ in range(given.turns):
            for name, command in COMMANDS.items():
                found[name].append(run(given.python, [places.get(w, w) for w in command]))
    rows = [
        {
            "command": name,
            "seconds": median(seconds for seconds, _ in runs[1:]),
            "fastest_s": min(seconds for seconds, _ in runs[1:]),
            "peak_mb": max(mb for _, mb in runs),
        }
        for name, runs in found.items()
    ]
    for row in rows:
        print(row, file=sys.stderr)
    # Torch comes only now: a child's peak begins with what its parent had.
    from provenance import provenance, without_paths, write_result

    command = "python benchmarks/startup.py " + without_paths(sys.argv[1:])
    write_result(given.name, {**provenance(command.strip()), "rows": rows})


def write_photos(folder: Path) -> None:
    """Write some photos of noise."""
    drawn = random.Random(0)  # noqa: S311 -- a picture
    folder.mkdir()
    for number in range(_PHOTOS):
        pixels = drawn.randbytes(96 * 128 * 3)
        (folder / f"{number}.ppm").write_bytes(b"P6 128 96 255\n" + pixels)


def run(python: str, arguments: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds and its megabytes at most.

    Raises:
        RuntimeError: If it fails.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    start = perf_counter()
    child = os.posix_spawn(
        python,
        [python, "-c", "from app import main; main()", *arguments],
        {name: said for name, said in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        file_actions=[(os.POSIX_SPAWN_DUP2, nowhere, 1)],
    )
    _, status, usage = os.wait4(child, 0)
    seconds = perf_counter() - start
    os.close(nowhere)
    if status:
        raise RuntimeError(f"{' '.join(arguments)} ended with {status}")
    return seconds, usage.ru_maxrss / 1000


if __name__ == "__main__":
    main()
