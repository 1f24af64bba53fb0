"""Handwritten digits, which the encoder never saw: how far do its sizes agree on what is new?

    python benchmarks/digits.py --work WORK

The 1,797 digits come inside scikit-learn. Every fifth asks the others. WORK keeps the pictures, in
`digits`, and the index, `digits.index`.

References:
    Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    https://doi.org/10.24432/C50P49.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from provenance import provenance, write_result
from sklearn.datasets import load_digits
from tiny_imagenet import is_complete

from app.demo import split
from indexing import Corpus, ImageIndex
from matvit import DEFAULT_ENCODER, MatViT, mix_n_match, trained_sizes
from retrieval import Retriever, evaluate

SIDE = 64  # pixels; the originals have 8
_MIXES = 8


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()

    model = MatViT.load(DEFAULT_ENCODER)
    database, queries = split(Corpus.open(write_digits(given.work / "digits")))
    path = given.work / "digits.index"
    index = (
        ImageIndex.open(path, model)
        if is_complete(path)
        else ImageIndex.build(model, database, path, kind="Flat", progress=True)
    )
    sizes = [*trained_sizes(model.config), *mix_n_match(model.config, _MIXES)]
    frontier = evaluate(Retriever(model, index), queries, sizes, progress=True)
    write_result(
        "digits",
        {
            **provenance("python benchmarks/digits.py --work WORK"),
            "conditions": None if frontier.conditions is None else asdict(frontier.conditions),
            "points": [point.to_dict() for point in frontier],
        },
    )


def write_digits(folder: Path) -> Path:
    """Write the digits as PNG files, one folder per class, and return the folder."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
        gray.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return folder


if __name__ == "__main__":
    main()
