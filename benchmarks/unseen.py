"""Classes never seen in training: every image of a set asks for the others of its class.

    python benchmarks/unseen.py --data IMAGES --work WORK [--name grocery]

IMAGES is whatever `matvit index build` takes, with labels. Leave one out: an image never counts
among its own hits.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from provenance import provenance, without_paths, write_result
from tiny_imagenet import is_complete

from indexing import Corpus, ImageIndex
from matvit import DEFAULT_ENCODER, MatViT, mix_n_match, resolve_device, trained_sizes
from retrieval import Retriever, evaluate

_MIXES = 6


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--name", default="grocery")
    given = parser.parse_args()

    model = MatViT.load(given.encoder, device=resolve_device("auto"))
    corpus = Corpus.open(given.data)
    path = given.work / f"{given.name}.index"
    index = (
        ImageIndex.open(path, model)
        if is_complete(path)
        else ImageIndex.build(model, corpus, path, kind="Flat", progress=True)
    )
    sizes = [*trained_sizes(model.config), *mix_n_match(model.config, _MIXES)]
    frontier = evaluate(Retriever(model, index), corpus, sizes, k=10, progress=True)
    command = "python benchmarks/unseen.py " + without_paths(sys.argv[1:])
    write_result(
        given.name,
        {
            **provenance(command),
            "conditions": None if frontier.conditions is None else asdict(frontier.conditions),
            "points": [point.to_dict() for point in frontier],
        },
    )


if __name__ == "__main__":
    main()
