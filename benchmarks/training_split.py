"""Where the time of a training step goes.

    python benchmarks/training_split.py --data DATA [--recipe joint64] [--steps 12]

DATA is a labelled folder or Parquet files. It is decoded once before training, and how long that
takes is reported too. Then every step fetches the stored pixels (a thread does so ahead of the
training), changes them (crops, flips, colours, mixes), runs forward and backward, and updates the
weights and their average. Medians over the steps, after two that warm up.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any

import torch
from provenance import provenance, without_paths, write_result

from indexing import Corpus
from matvit.training import LabelledPixels, recipe
from matvit.training.trainer import Trainer

_WARM_UP = 2


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="joint64")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()

    chosen = recipe(given.recipe)
    start = perf_counter()
    data = LabelledPixels.load(Corpus.open(given.data), chosen.preprocess())
    decoding = perf_counter() - start
    # Enough epochs for the steps, however few the images are.
    phase = replace(chosen.phases[-1], epochs=10 * given.steps)
    trainer = Trainer(replace(chosen, phases=(phase,)), data, device=given.device)
    split = measure(trainer, given.steps)
    command = "python benchmarks/training_split.py " + without_paths(sys.argv[1:])
    write_result(
        "training_split",
        {
            **provenance(command),
            "recipe": given.recipe,
            "images": len(data),
            "decoding_seconds": decoding,
            "batch_size": trainer.schedule.batch_size,
            "milliseconds": split,
        },
    )


def measure(trainer: Trainer, steps: int) -> dict[str, float]:
    """Median milliseconds of each part of a step, and of the whole step."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: object, **named: object) -> object:
            _wait(trainer)
            start = perf_counter()
            result = run(*arguments, **named)
            _wait(trainer)
            spent[name] += perf_counter() - start
            return result

        return wrapper

    parts = {
        "fetch": (trainer._batches, "fetch"),
        "change": (trainer._batches, "change"),
        "forward and backward": (trainer, "_backward"),
        "update": (trainer, "_update"),
    }
    for name, (owner, method) in parts.items():
        setattr(owner, method, timed(name, getattr(owner, method)))
    rows = []
    for _ in range(_WARM_UP + steps):
        spent.clear()
        start = perf_counter()
        trainer.train_step()
        _wait(trainer)
        rows.append({**spent, "step": perf_counter() - start})
    kept = rows[_WARM_UP:]
    return {name: round(1000 * median(row[name] for row in kept), 2) for name in kept[0]}


def _wait(trainer: Trainer) -> None:
    """Wait until the device has done what it was given."""
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)


if __name__ == "__main__":
    main()
