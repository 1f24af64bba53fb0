"""Ways to train a MatViT, compared at equal training compute.

    python benchmarks/recipes.py --data DATA --work WORK [--scale cpu|gpu] [--seeds 2]

Every contender spends the same multiply-accumulates on the same images: forward passes of all
that a step trains, twice as much again for the backward pass, and the teacher's forward pass
where there is one. What several sizes share is charged to each of them, so those that train
several at once really get a little less. Ordinary ViTs of the sizes S, M and XL, trained apart,
are contenders too.

Each encoder is asked by 1-NN over its training images, held-out images as queries: against the
index of its own full size (what asymmetric search does), and against one of the same submodel's
making (symmetric). Those trained apart also ask the index of a jointly trained one. WORK keeps
every finished encoder, so an interrupted comparison goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from provenance import provenance, without_paths, write_result

from indexing import Corpus
from matvit import MatViT, MatViTConfig, Submodel, count_macs, embed, resolve_device
from matvit.mixes import random_submodel
from matvit.training import LabelledPixels, train
from matvit.training.schedule import RANDOM, Phase, Recipe

_SIZES = ("S", "M", "L", "XL")
_SANDWICH = ("S", "XL", RANDOM, RANDOM)
_BACKWARD = 2  # forward passes that a backward pass is worth
_FOLDER = "{name}-seed{seed}"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a comparison to run.

    Args:
        model: Architecture at full size.
        classes: Classes of the data to use.
        epochs: Passes over the data that the full size alone would make; this is the budget.
        batch_size: Images per step.
        database: Images that the queries are compared with.
        learning_rate: Peak learning rate of every contender.
    """

    model: MatViTConfig
    classes: int
    epochs: float
    batch_size: int
    database: int
    learning_rate: float = 2e-3


SCALES = {
    "tiny": Scale(  # to see whether it runs
        model=MatViTConfig(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2),
        classes=3,
        epochs=2,
        batch_size=16,
        database=60,
    ),
    "cpu": Scale(
        model=MatViTConfig(img_size=32, patch_size=8, embed_dim=256, depth=6, num_heads=4),
        classes=50,
        epochs=2.5,
        batch_size=128,
        database=10_000,
    ),
    "gpu": Scale(
        model=MatViTConfig(img_size=64, patch_size=8, embed_dim=256, depth=6, num_heads=4),
        classes=200,
        epochs=40,
        batch_size=512,
        database=100_000,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A share of a contender's compute, spent in one way."""

    share: float
    phase: Phase


# Epochs and image size of these phases are filled in by `_recipe`.
_PLAIN = Phase(epochs=1, img_size=1, sizes=("XL",), weights=(1.0,))
_JOINT = replace(_PLAIN, sizes=_SIZES, weights=(1.0,) * 4)
_RANDOM = replace(_JOINT, sizes=_SANDWICH)
_ALIGN = replace(_RANDOM, objective="align")

CONTENDERS: dict[str, tuple[float, tuple[Stage, ...]]] = {
    "apart S": (0.5, (Stage(share=1, phase=_PLAIN),)),
    "apart M": (1.0, (Stage(share=1, phase=_PLAIN),)),
    "apart XL": (4.0, (Stage(share=1, phase=_PLAIN),)),
    "joint": (4.0, (Stage(share=1, phase=_JOINT),)),
    "joint, random mixes": (4.0, (Stage(share=1, phase=_RANDOM),)),
    "sampled": (4.0, (Stage(share=1, phase=replace(_JOINT, sampled=True)),)),
    "joint, then align": (
        4.0,
        (Stage(share=0.6, phase=_JOINT), Stage(share=0.4, phase=_ALIGN)),
    ),
    "plain, then align": (4.0, (Stage(share=0.6, phase=_PLAIN), Stage(share=0.4, phase=_ALIGN))),
    "plain, then align with neighbours": (
        4.0,
        (
            Stage(share=0.6, phase=_PLAIN),
            Stage(share=0.4, phase=replace(_ALIGN, neighbour_weight=0.5)),
        ),
    ),
}
"""By name: the FFN ratio at full size, and what the compute is spent on."""


def main() -> None:
    """Train what is missing, measure everything, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()

    scale = SCALES[given.scale]
    work = given.work / given.scale
    images = _load(given.data, "train", scale)
    queries = _load(given.data, "val", scale)
    for seed in range(given.seeds):
        for name in given.only:
            folder = work / _FOLDER.format(name=name.replace(" ", "-"), seed=seed)
            if not (folder / "row.json").exists():
                row = _run(name, scale, images, queries, folder, seed, given.device)
                (folder / "row.json").write_text(json.dumps(row), encoding="utf-8")
    rows = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob("*/row.json"))
    ]
    command = "python benchmarks/recipes.py " + without_paths(sys.argv[1:])
    write_result(
        "recipes",
        {
            **provenance(command),
            "scale": given.scale,
            "classes": scale.classes,
            "images": len(images),
            "queries": len(queries),
            "rows": rows,
            "apart_asking_joint": _crossed(
                work, images.sample(scale.database), queries, resolve_device(given.device)
            ),
        },
    )


def _run(
    name: str,
    scale: Scale,
    images: LabelledPixels,
    queries: LabelledPixels,
    folder: Path,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Train one contender and measure it."""
    start = time.perf_counter()
    ratio, stages = CONTENDERS[name]
    budget = scale.epochs * _cost(scale.model, _PLAIN) * len(images)
    encoder: MatViT | None = None
    for number, stage in enumerate(stages):
        recipe = _recipe(name, scale, ratio, stage, budget, len(images))
        out = folder / f"stage{number}"
        done = (out / "model.safetensors").exists()
        resume = (out / "state.pt").exists()
        encoder = (
            MatViT.load(out)
            if done
            else train(
                recipe, images, out, seed=seed, device=device, init=encoder, resume=resume,
                progress=sys.stderr.isatty(),
            )
        )  # fmt: skip
    assert encoder is not None
    seconds = time.perf_counter() - start
    points = measure(encoder.to(resolve_device(device)), images, queries, scale.database)
    print(name, seed, round(seconds), points, file=sys.stderr, flush=True)
    return {
        "recipe": name,
        "seed": seed,
        "seconds": round(seconds, 1),
        "training_macs": budget,
        "points": points,
    }


def _recipe(
    name: str, scale: Scale, ratio: float, stage: Stage, budget: float, images: int
) -> Recipe:
    """Spend a stage's share of the budget, in as many epochs as that pays for."""
    model = replace(scale.model, mlp_ratio=ratio)
    epochs = stage.share * budget / (_cost(model, stage.phase) * images)
    aligns = stage.phase.objective == "align"
    return Recipe(
        name=name,
        model=model,
        phases=(replace(stage.phase, epochs=epochs, img_size=model.img_size),),
        batch_size=scale.batch_size,
        learning_rate=scale.learning_rate,
        warmup_steps=50,
        min_area=0.5 if aligns else 0.35,
        ema_decay=0.98,
        needs_init=aligns,
    )


def _cost(model: MatViTConfig, phase: Phase) -> float:
    """Multiply-accumulates of training on one image."""
    full = Submodel.parse("XL", depth=model.depth, hidden_dim=model.hidden_dim)
    forward = [_forward(model, size) for size in phase.sizes]
    trained = sum(forward) / (len(forward) if phase.sampled else 1)
    teacher = count_macs(model, full) if phase.objective == "align" else 0
    return (1 + _BACKWARD) * trained + teacher


def _forward(model: MatViTConfig, size: str) -> float:
    if size == RANDOM:
        return float(np.mean([count_macs(model, random_submodel(model, s)) for s in range(1000)]))
    parsed = Submodel.parse(size, depth=model.depth, hidden_dim=model.hidden_dim)
    return float(count_macs(model, parsed))


def measure(
    encoder: MatViT, images: LabelledPixels, queries: LabelledPixels, database: int
) -> list[dict[str, Any]]:
    """Ask with every size: the full size's index, and the size's own."""
    images = images.sample(database)
    full = embed(encoder, images.pixels)
    points = []
    for spec in _measured(encoder):
        asked = embed(encoder, queries.pixels, spec)
        own = full if spec == "XL" else embed(encoder, images.pixels, spec)
        submodel = encoder.submodel(spec)
        points.append(
            {
                "submodel": str(submodel),
                "macs": count_macs(encoder.config, submodel),
                "hit_rate@1": _hit_rate(asked, full, queries.labels, images.labels),
                "symmetric_hit_rate@1": _hit_rate(asked, own, queries.labels, images.labels),
            }
        )
    return points


def _measured(encoder: MatViT) -> Iterable[str]:
    """All sizes of a MatViT and two mixes; an encoder that was trained apart has one size."""
    if "apart" in encoder.name:
        return ("XL",)
    half = encoder.config.depth // 2
    rest = encoder.config.depth - half
    return (*_SIZES, f"{half}xM,{rest}xL", f"{half}xS,{rest}xXL")


def _crossed(
    work: Path, images: LabelledPixels, queries: LabelledPixels, device: torch.device
) -> dict[str, float]:
    """hit_rate@1 of encoders trained apart that ask the index of the jointly trained one."""
    joint = work / _FOLDER.format(name="joint", seed=0) / "stage0"
    if not (joint / "model.safetensors").exists():
        return {}
    database = embed(MatViT.load(joint, device=device), images.pixels)
    found = {}
    for name in CONTENDERS:
        folder = work / _FOLDER.format(name=name.replace(" ", "-"), seed=0) / "stage0"
        if name.startswith("apart") and (folder / "model.safetensors").exists():
            asked = embed(MatViT.load(folder, device=device), queries.pixels)
            found[name] = _hit_rate(asked, database, queries.labels, images.labels)
    return found


def _hit_rate(
    asked: NDArray[np.float32],
    database: NDArray[np.float32],
    wanted: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> float:
    """Share of queries whose most similar image is of their class."""
    nearest = [
        (torch.from_numpy(part) @ torch.from_numpy(database).T).argmax(dim=1).numpy()
        for part in np.array_split(asked, max(1, len(asked) // 256))
    ]
    return float((labels[np.concatenate(nearest)] == wanted).mean())


def _load(data: Path, split: str, scale: Scale) -> LabelledPixels:
    """Decode the images of the first classes."""
    recipe = Recipe(name="", model=scale.model, phases=(_PLAIN,))
    images = LabelledPixels.load(Corpus.open(data / f"{split}-*.parquet"), recipe.preprocess())
    names = sorted(images.class_names)[: scale.classes]
    numbers = [images.class_names.index(name) for name in names]
    kept = np.isin(images.labels, numbers)
    labels = np.array([names.index(images.class_names[label]) for label in images.labels[kept]])
    return LabelledPixels(images.pixels[kept], labels, names, images.skipped)


if __name__ == "__main__":
    main()
