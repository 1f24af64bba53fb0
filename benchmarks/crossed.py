"""Why an ordinary small encoder cannot ask a big one's index.

    python benchmarks/crossed.py --data DATA --work WORK --apart RUN

RUN is a small encoder that was trained on its own (`matvit train DATA --recipe apart-s`). It was
trained on the same classes and gives vectors of the same dimension, and still shares no space with
ours: each asks the index of its own making, and then the other's. WORK is that of
`benchmarks/tiny_imagenet.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import provenance, without_paths, write_result
from tiny_imagenet import open_or_build

from indexing import Corpus, ImageIndex
from matvit.checkpoint import DEFAULT
from matvit.cost import count_macs
from matvit.embed import embed, resolve_device
from matvit.model import MatViT


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--apart", type=Path, required=True)
    given = parser.parse_args()

    model = MatViT.load(DEFAULT, device=resolve_device("auto"))
    index, _ = open_or_build(model, given.data, given.work / "full.index")
    rows = crossed(model, index, given.apart, given.data, given.work)
    command = "python benchmarks/crossed.py " + without_paths(sys.argv[1:])
    write_result("crossed", {**provenance(command), "rows": rows})


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


if __name__ == "__main__":
    main()
