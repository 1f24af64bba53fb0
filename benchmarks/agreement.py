"""Does a submodel say what the full encoder says, and where should it ask?

    python benchmarks/agreement.py --data DATA [--database 10000]

On Tiny ImageNet's val images, for every trained size: 1-NN against training images embedded at
full size (asymmetric, what this project is for) and against the same images embedded by the same
submodel (symmetric), with the standard error of the difference, query by query; and how far its
vectors and its classifier agree with the full encoder's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import consistency
import numpy as np
import torch
from numpy.typing import NDArray
from provenance import provenance, without_paths, write_result
from torch.nn.functional import normalize

from indexing import Corpus
from matvit import (
    DEFAULT_ENCODER,
    MatViT,
    Submodel,
    count_macs,
    embed,
    resolve_device,
    resolve_precision,
    trained_sizes,
)
from matvit.torch_runtime import to_input
from matvit.training import LabelledPixels
from retrieval.agreement import cosine

_MIXES = ("3xS,3xM", "3xM,3xL", "3xL,3xXL", "3xS,3xXL")


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--database", type=int, default=10_000)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    given = parser.parse_args()

    model = MatViT.load(given.encoder, device=resolve_device("auto"))
    images = LabelledPixels.load(Corpus.open(given.data / "train-*.parquet"), model.preprocess)
    images = images.sample(given.database)
    queries = LabelledPixels.load(Corpus.open(given.data / "val-*.parquet"), model.preprocess)
    queries = queries.with_classes(images.class_names)
    command = "python benchmarks/agreement.py " + without_paths(sys.argv[1:])
    rows = compare(model, images, queries)
    write_result(
        "agreement",
        {
            **provenance(command),
            "encoder": model.name,
            "fingerprint": model.fingerprint,
            "images": len(images),
            "queries": len(queries),
            "rows": rows,
        },
    )


def compare(model: MatViT, images: LabelledPixels, queries: LabelledPixels) -> list[dict[str, Any]]:
    """Compare every size, and a few mixes, with the full encoder."""
    database = embed(model, images.pixels)
    reference, scores = _vectors_and_scores(model, queries.pixels, model.submodel())
    rows = []
    for submodel in [*trained_sizes(model.config), *map(model.submodel, _MIXES)]:
        asked, its_scores = _vectors_and_scores(model, queries.pixels, submodel)
        own = embed(model, images.pixels, submodel)
        asymmetric = _hits(asked, database, queries.labels, images.labels)
        symmetric = _hits(asked, own, queries.labels, images.labels)
        difference = asymmetric.astype(float) - symmetric
        rows.append(
            {
                "submodel": str(submodel),
                "macs": count_macs(model.config, submodel),
                "hit_rate@1": asymmetric.mean(),
                "symmetric_hit_rate@1": symmetric.mean(),
                "difference_standard_error": difference.std() / np.sqrt(len(difference)),
                "cosine": float(cosine(reference, asked).mean()),
                "top1_agreement": consistency.top1_agreement(scores, its_scores).mean(),
                "rank_correlation": _rank_correlation(reference, asked, database),
                "kl_divergence": consistency.kl_divergence(scores, its_scores).mean(),
                "top1": (its_scores.argmax(axis=1) == queries.labels).mean(),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _vectors_and_scores(
    model: MatViT, pixels: NDArray[np.uint8], submodel: Submodel
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings as `embed` makes them, and the class scores that belong to them."""
    bfloat16 = resolve_precision(model.device) == torch.bfloat16
    pooled, scores = [], []
    with (
        torch.inference_mode(),
        torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16),
    ):
        for start in range(0, len(pixels), 256):
            images = to_input(pixels[start : start + 256], model)
            pooled.append(model.vectors(images, [submodel])[0])
            scores.append(model.classify(pooled[-1]).float().cpu())
    vectors = normalize(torch.cat(pooled).float().cpu(), dim=-1)
    return vectors.numpy(), torch.cat(scores).numpy()


def _rank_correlation(
    reference: NDArray[np.float32], asked: NDArray[np.float32], database: NDArray[np.float32]
) -> float:
    """Of the scores of each query's 100 images nearest to the full encoder's vector."""
    correlations = []
    for start in range(0, len(asked), 500):
        full = reference[start : start + 500] @ database.T
        near = np.argpartition(-full, 100, axis=1)[:, :100]
        scores = asked[start : start + 500] @ database.T
        pair = (np.take_along_axis(each, near, axis=1) for each in (full, scores))
        correlations.append(consistency.rank_correlation(*pair))
    return float(np.concatenate(correlations).mean())


def _hits(
    asked: NDArray[np.float32],
    database: NDArray[np.float32],
    wanted: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether each query's most similar image is of its class."""
    base = torch.from_numpy(database).T
    nearest = [(torch.from_numpy(part) @ base).argmax(dim=1) for part in np.array_split(asked, 40)]
    return labels[torch.cat(nearest).numpy()] == wanted


if __name__ == "__main__":
    main()
