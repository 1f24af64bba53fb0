"""Add and remove a few images again and again, and see what of the disk an index takes.

    python benchmarks/cycles.py

Each cycle adds two images that are new and removes two that are old, each in its own commit. After
each the files of the index, their bytes, and the descriptors of this process that has the index
open are counted. The encoder is a tiny one, untrained.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from crash import SIDE, tiny_model
from PIL import Image
from provenance import provenance, without_paths, write_result
from tqdm import tqdm

from indexing import Corpus, ImageIndex, read_manifest, verify_index

PHOTOS, FEW, SHOWN = 200, 2, (1, 50, 100, 150, 200, 250, 300)


def main() -> None:
    """Count, and write what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=300)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.cycles)
    command = "python benchmarks/cycles.py " + without_paths(sys.argv[1:])
    most = {name: max(row[name] for row in rows) for name in ("files", "bytes", "descriptors")}
    shown = [row for row in rows if row["cycle"] in SHOWN]
    write_result(
        "cycles", {**provenance(command.strip()), "images": PHOTOS, "most": most, "rows": shown}
    )


def measure(work: Path, cycles: int) -> list[dict[str, Any]]:
    """Count files, bytes and descriptors after each cycle.

    Raises:
        RuntimeError: If the index is not whole in the end, or holds other images than it should.
    """
    model, photos = tiny_model(), work / "photos"
    photos.mkdir()
    for number in range(PHOTOS):
        _photo(photos, number)
    index, rows = ImageIndex.build(model, Corpus.open(photos), work / "index"), []
    for cycle in tqdm(range(1, cycles + 1)):
        start = perf_counter()
        for number in range(FEW):
            _photo(photos, PHOTOS + FEW * cycle + number)
        index = index.add(model, Corpus.open(photos))
        oldest = index.paths[:FEW]
        index = index.remove(paths=oldest)
        seconds = perf_counter() - start
        for name in oldest:
            (photos / name).unlink()
        files = [path for path in (work / "index").rglob("*") if path.is_file()]
        rows.append({
            "cycle": cycle,
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "shards": len(read_manifest(index.path).shards),
            "seconds": round(seconds, 3),
        })  # fmt: skip
    if not verify_index(index.path).ok or sorted(index.paths) != sorted(
        p.name for p in photos.iterdir()
    ):
        raise RuntimeError("the index is not what was put into it")
    return rows


def _photo(folder: Path, number: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{number:05}.png")


if __name__ == "__main__":
    main()
