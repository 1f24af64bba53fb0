"""Every submodel there is, measured once: how far what is found is from the best there would be.

    python benchmarks/whole_map.py --data DATA --work WORK [--encoder NAME]

DATA holds `train-*.parquet` and `val-*.parquet`. Part of the training images are indexed at full
size, in WORK; some validation images ask with all 4,096 submodels of six blocks and four widths,
which share what their first blocks have in common. `matvit tune` is asked what it would choose,
by other validation images; so is the paper's rule. What either chooses is then looked up on the
map: a shortfall is what the best submodel of no more compute finds beyond it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from provenance import provenance, without_paths, write_result
from tiny_imagenet import is_complete

from indexing import Corpus, ImageIndex
from matvit import (
    DEFAULT_ENCODER,
    Granularity,
    MatViT,
    Submodel,
    count_macs,
    embed,
    embed_each,
    mix_n_match,
    progress_of,
    resolve_device,
)
from matvit.training import LabelledPixels
from retrieval import Retriever, tune

K = 10


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--database", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--name", default="whole_map")
    given = parser.parse_args()

    model = MatViT.load(given.encoder, device=resolve_device("auto"))
    database = evenly(Corpus.open(given.data / "train-*.parquet"), given.database)
    asking = Corpus.open(given.data / "val-*.parquet")
    mapping = np.arange(len(asking))[:: max(1, len(asking) // given.queries)][: given.queries]
    path = given.work / "map.index"
    index = (
        ImageIndex.open(path, model)
        if is_complete(path)
        else ImageIndex.build(model, database, path, kind="Flat", progress=True)
    )
    others = asking.subset(np.setdiff1d(np.arange(len(asking)), mapping))
    tuning = tune(Retriever(model, index), others, latency=False, progress=True)
    points = measure(model, database, asking.subset(mapping))
    by_name = {point["submodel"]: point for point in points}
    best = frontier(points)
    picks = {
        "tune": [point.submodel for point in tuning.frontier.pareto if point.submodel in by_name],
        "paper": [str(each) for each in mix_n_match(model.config)],
    }
    write_result(
        given.name,
        {
            **provenance("python benchmarks/whole_map.py " + without_paths(sys.argv[1:])),
            "encoder": model.name,
            "fingerprint": model.fingerprint,
            "images": len(index),
            "queries": len(mapping),
            "k": K,
            "best": best,
            "picks": {
                name: [shortfall(by_name[each], best) for each in chosen]
                for name, chosen in picks.items()
            },
            "points": [
                [each["submodel"], each["of_full"], each["overlap"], each["hit_rate"]]
                for each in points
            ],
        },
    )


def evenly(corpus: Corpus, count: int) -> Corpus:
    """Take some images of a corpus, evenly spaced."""
    return corpus.subset(np.linspace(0, len(corpus) - 1, min(count, len(corpus))).astype(np.int64))


def measure(model: MatViT, database: Corpus, queries: Corpus) -> list[dict[str, Any]]:
    """Ask with every submodel; cheapest first."""
    stored = LabelledPixels.load(database, model.preprocess, progress=True)
    asked = LabelledPixels.load(queries, model.preprocess).with_classes(stored.class_names)
    vectors = torch.from_numpy(embed(model, stored.pixels, batch_size=64)).to(model.device)
    widths = [size.width(model.config.hidden_dim) for size in Granularity]
    every = [
        Submodel(each, model.config.hidden_dim)
        for each in product(widths, repeat=model.config.depth)
    ]
    full = every[-1]
    wanted = nearest(embed(model, asked.pixels, full), vectors)
    points = []
    with progress_of("mapping", len(every), unit="submodels", shown=True) as bar:
        for submodel, embeddings in embed_each(model, asked.pixels, every):
            found = nearest(embeddings, vectors)
            right = stored.labels[found[:, 0]] == asked.labels
            points.append({
                "submodel": str(submodel),
                "of_full": count_macs(model.config, submodel) / count_macs(model.config, full),
                "overlap": round(overlap(found, wanted), 4),
                "hit_rate": round(float(right.mean()), 4),
            })  # fmt: skip
            bar.update(1)
    return sorted(points, key=lambda each: (each["of_full"], each["submodel"]))


def nearest(queries: NDArray[np.float32], vectors: torch.Tensor) -> NDArray[np.int64]:
    """Rows of the nearest vectors of each query, best first."""
    scores = torch.from_numpy(queries).to(vectors.device) @ vectors.T
    rows: NDArray[np.int64] = scores.topk(K, dim=1).indices.cpu().numpy()
    return rows


def overlap(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    """Mean share of the wanted rows that were found."""
    return float((found[:, :, np.newaxis] == wanted[:, np.newaxis]).any(axis=2).mean())


def frontier(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the points that find more than every cheaper one; the points come cheapest first."""
    best: list[dict[str, Any]] = []
    for point in points:
        if not best or point["overlap"] > best[-1]["overlap"]:
            best.append(point)
    return best


def shortfall(point: dict[str, Any], best: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Say how much more the best submodel of no more compute finds."""
    affordable = [each["overlap"] for each in best if each["of_full"] <= point["of_full"] + 1e-9]
    return {**point, "shortfall": round(affordable[-1] - point["overlap"], 4)}


if __name__ == "__main__":
    main()
