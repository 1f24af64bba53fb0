r"""Train an encoder through several recipes, each going on from the one before, and judge it.

    python benchmarks/ship.py --data DATA --work WORK --chain distill-gpu \
        --teacher tf_efficientnet_lite2 [--teacher-weights FILE] --teacher-size 192

Needs nothing but `matvit` and its dependencies (no FAISS), so it runs wherever there is a GPU.
Run it again after an interruption, and it goes on. Leaves the encoder in WORK/shipped, stored
as float16, and the 1-NN accuracy and the throughput of every size in
`benchmarks/results/ship.json`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from provenance import provenance, without_paths, write_result
from recipes import measure

from indexing import Corpus
from matvit import MatViT, embed, resolve_device, trained_sizes
from matvit.training import LabelledPixels, Teacher, open_teacher, recipe, train
from matvit.training.recipes import RECIPES


def main() -> None:
    """Train what is missing, measure, write the encoder and the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--chain", nargs="+", choices=RECIPES, required=True)
    parser.add_argument("--name", default="shipped", help="name of the encoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--teacher", help="for recipes that distil; see `matvit train`")
    parser.add_argument("--teacher-weights", type=Path)
    parser.add_argument("--teacher-size", type=int)
    parser.add_argument("--database", type=int, default=100_000)
    given = parser.parse_args()

    preprocess = recipe(given.chain[0]).preprocess()
    images = LabelledPixels.load(Corpus.open(given.data / "train-*.parquet"), preprocess)
    queries = LabelledPixels.load(Corpus.open(given.data / "val-*.parquet"), preprocess)
    start = time.perf_counter()
    teacher = None
    if given.teacher is not None:
        teacher = open_teacher(
            given.teacher, weights=given.teacher_weights, img_size=given.teacher_size,
            device=resolve_device(given.device),
        )  # fmt: skip
    encoder = _train(given.chain, images, teacher, given.work, given.seed, given.device)
    seconds = time.perf_counter() - start
    encoder.name = given.name
    encoder.save(
        given.work / "shipped",
        dtype=torch.float16,
        training={
            "chain": given.chain,
            "teacher": given.teacher,
            "seed": given.seed,
            "classes": images.class_names,
        },
    )
    shipped = MatViT.load(given.work / "shipped", device=resolve_device(given.device))
    known = queries.with_classes(images.class_names)
    write_result(
        "ship",
        {
            **provenance("python benchmarks/ship.py " + without_paths(sys.argv[1:])),
            "chain": given.chain,
            "teacher": given.teacher,
            "seed": given.seed,
            "seconds_of_this_run": round(seconds, 1),
            "fingerprint": shipped.fingerprint,
            "points": measure(shipped, images, known, given.database),
            "images_per_s": throughput(shipped),
        },
    )


def _train(
    chain: list[str],
    images: LabelledPixels,
    teacher: Teacher | None,
    work: Path,
    seed: int,
    device: str,
) -> MatViT:
    """Run the recipes of a chain that are not finished yet."""
    encoder: MatViT | None = None
    for number, name in enumerate(chain):
        out = work / f"{number}-{name}"
        if (out / "model.safetensors").exists():
            encoder = MatViT.load(out)
            continue
        chosen = recipe(name)
        encoder = train(
            chosen, images, out, seed=seed, device=device, init=encoder,
            teacher=teacher if chosen.distills else None, cache=work / "answers",
            resume=(out / "state.pt").exists(), progress=sys.stderr.isatty(),
        ).cpu()  # fmt: skip
    assert encoder is not None
    return encoder


def throughput(encoder: MatViT, batch_size: int = 1024, repeats: int = 5) -> dict[str, float]:
    """Images per second that each trained size embeds, the sizes taking turns; medians."""
    size = encoder.preprocess.img_size
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)
    seconds: dict[str, list[float]] = {
        str(submodel): [] for submodel in trained_sizes(encoder.config)
    }
    for turn in range(1 + repeats):
        for name, times in seconds.items():
            start = time.perf_counter()
            embed(encoder, pixels, name, batch_size=batch_size)
            if turn:  # the first turn warms up
                times.append(time.perf_counter() - start)
    return {name: round(batch_size / float(np.median(t)), 1) for name, t in seconds.items()}


if __name__ == "__main__":
    main()
