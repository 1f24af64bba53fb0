"""Recall against compute on Tiny ImageNet: train images indexed once, val images as queries.

    python benchmarks/tiny_imagenet.py --data DATA --work WORK [--encoder NAME]

DATA holds `train-*.parquet` and `val-*.parquet`. The index is built at full size, in WORK; every
size then asks it, all mixes of neighbouring sizes, and a spread of mixes in larger steps.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from provenance import provenance, without_paths, write_result

from indexing import Corpus, ImageIndex, read_manifest
from matvit import (
    DEFAULT_ENCODER,
    MatViT,
    mix_n_match,
    neighbouring_mixes,
    resolve_device,
    trained_sizes,
)
from retrieval import Retriever, evaluate, write_report

_MIXES = 6


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--trained", action="store_true", help="no mixes of the trained sizes")
    parser.add_argument("--name", default="tiny_imagenet")
    given = parser.parse_args()

    model = MatViT.load(given.encoder, device=resolve_device("auto"))
    queries = Corpus.from_parquet(given.data / "val-*.parquet")
    index, seconds = open_or_build(model, given.data, given.work / "full.index")
    retriever = Retriever(model, index)
    sizes = list(trained_sizes(model.config))
    if not given.trained:
        sizes += [*neighbouring_mixes(model.config), *mix_n_match(model.config, _MIXES)]
    frontier = evaluate(retriever, queries, sizes, k=10, progress=True)
    write_report(frontier, given.work / "report")
    result: dict[str, Any] = {
        **provenance("python benchmarks/tiny_imagenet.py " + without_paths(sys.argv[1:])),
        "conditions": None if frontier.conditions is None else asdict(frontier.conditions),
        "index_seconds": seconds,
        "points": [point.to_dict() for point in frontier],
    }
    write_result(given.name, result)


def open_or_build(model: MatViT, data: Path, path: Path) -> tuple[ImageIndex, float | None]:
    """Open the index of the training images, or build it and say how long that took."""
    start = perf_counter()
    if is_complete(path):
        return ImageIndex.open(path, model), None
    corpus = Corpus.from_parquet(data / "train-*.parquet")
    index = ImageIndex.build(model, corpus, path, kind="Flat", progress=True)
    return index, perf_counter() - start


def is_complete(path: Path) -> bool:
    """Whether an index is there and its build was not interrupted."""
    return (path / "manifest.json").exists() and read_manifest(path).plan is None


if __name__ == "__main__":
    main()
