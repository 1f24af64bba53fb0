"""Recall against compute on Tiny ImageNet: train images indexed once, val images as queries.

    python benchmarks/tiny_imagenet.py --data DATA --work WORK [--encoder NAME] [--apart DIR]

DATA holds `train-*.parquet` and `val-*.parquet`. The index is built at full size, in WORK; every
size and a spread of Mix'n'Match submodels then ask it. With --apart, a small encoder that was
trained on its own asks an index of its own making, and then ours: the two were trained on the
same classes and have the same dimension, and still share no space.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import provenance, write_result

from indexing import Corpus, ImageIndex
from matvit.checkpoint import DEFAULT
from matvit.cost import count_macs
from matvit.embed import embed, resolve_device
from matvit.mix_n_match import mix_n_match, trained_sizes
from matvit.model import MatViT
from retrieval import Retriever, evaluate
from retrieval.report import write_report

_MIXES = 10


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--encoder", default=DEFAULT)
    parser.add_argument("--apart", type=Path)
    parser.add_argument("--name", default="tiny_imagenet")
    given = parser.parse_args()

    model = MatViT.load(given.encoder, device=resolve_device("auto"))
    queries = Corpus.from_parquet(given.data / "val-*.parquet")
    index, seconds = open_or_build(model, given.data, given.work / "full.index")
    retriever = Retriever(model, index)
    sizes = [*trained_sizes(model.config), *mix_n_match(model.config, _MIXES)]
    frontier = evaluate(retriever, queries, sizes, k=10, progress=True)
    write_report(frontier, given.work / "report")
    result: dict[str, Any] = {
        **provenance("python benchmarks/tiny_imagenet.py " + _without_paths(sys.argv[1:])),
        "conditions": None if frontier.conditions is None else asdict(frontier.conditions),
        "index_seconds": seconds,
        "points": [point.to_dict() for point in frontier],
    }
    if given.apart:
        result["crossed"] = crossed(model, index, given.apart, given.data, given.work)
    write_result(given.name, result)


def open_or_build(model: MatViT, data: Path, path: Path) -> tuple[ImageIndex, float | None]:
    """Open the index of the training images, or build it and say how long that took."""
    if (path / "manifest.json").exists():
        return ImageIndex.open(path, model), None
    start = perf_counter()
    corpus = Corpus.from_parquet(data / "train-*.parquet")
    index = ImageIndex.build(model, corpus, path, progress=True)
    return index, perf_counter() - start


def crossed(
    model: MatViT, index: ImageIndex, folder: Path, data: Path, work: Path
) -> list[dict[str, Any]]:
    """Let our S, and a small encoder trained apart, ask both indexes: hit_rate@1 of each pair."""
    apart = MatViT.load(folder, device=model.device)
    own, _ = open_or_build(apart, data, work / "apart.index")
    pixels, labels = _decode(Corpus.from_parquet(data / "val-*.parquet"), model)
    ours, theirs = embed(model, pixels, "S"), embed(apart, pixels)
    pairs = [
        ("ours at S", model, "S", "ours at full size", ours, index),
        (apart.name, apart, "XL", apart.name, theirs, own),
        (apart.name, apart, "XL", "ours at full size", theirs, index),
        ("ours at S", model, "S", apart.name, ours, own),
    ]
    return [
        {
            "query_encoder": asking,
            "database_encoder": answering,
            "query_macs": count_macs(encoder.config, encoder.submodel(size)),
            "hit_rate@1": _hit_rate(database, vectors, labels),
        }
        for asking, encoder, size, answering, vectors, database in pairs
    ]


def _hit_rate(index: ImageIndex, vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    ids, _ = index.search(vectors, 1)
    relevant = index.labels[index.rows_of(ids)] == labels[:, None]
    return float(relevant[:, 0].mean())


def _decode(corpus: Corpus, model: MatViT) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batches = list(corpus.decode(model.preprocess))
    labels = [record.label for batch in batches for record in batch.records]
    return np.concatenate([batch.pixels for batch in batches]), np.array(labels)


def _without_paths(arguments: list[str]) -> str:
    """Keep the names of files and leave out where they lie on this machine."""
    return re.sub(r"(^|[ =])\S*/", r"\1", " ".join(arguments))


if __name__ == "__main__":
    main()
