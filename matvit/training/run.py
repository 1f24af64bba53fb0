"""The training loop: a recipe, labelled images and a seed become an encoder.

A run folder is an encoder like any other (`model.safetensors`, `config.json`), with the recipe
(`recipe.json`), the log (`log.jsonl`, one object per report) and the state to resume from
(`state.pt`) beside it. Everything random is derived from the seed and the step, so a resumed run
takes the very steps that an uninterrupted one would have taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from matvit.device import resolve_device
from matvit.files import is_exhaustion, open_regular
from matvit.mixes import trained_sizes
from matvit.model import MatViT
from matvit.progress import progress_of
from matvit.torch_runtime import batches
from matvit.training.checks import check_before_asking
from matvit.training.data import LabelledPixels
from matvit.training.distributed import Processes
from matvit.training.schedule import Recipe
from matvit.training.teacher import ANSWERS, Answers, Teacher, ask
from matvit.training.trainer import Trainer
from matvit.writing import naming, write_atomically

STATE = "state.pt"
LOG = "log.jsonl"
RECIPE = "recipe.json"
_SEAL = b"\nmatvit-sha256 "  # behind the archive, which readers of archives pass over
_SEAL_BYTES = len(_SEAL) + 64 + 1
_BLOCK = 1 << 24
_REPORT_EVERY = 50
_VALIDATION_IMAGES = 1000


def train(
    recipe: Recipe,
    data: LabelledPixels,
    out: str | Path,
    *,
    validation: LabelledPixels | None = None,
    seed: int = 0,
    device: str = "auto",
    init: MatViT | None = None,
    teacher: MatViT | Teacher | None = None,
    cache: str | Path | None = None,
    workers: int = 1,
    evaluate_every: float | None = None,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    progress: bool = False,
) -> MatViT:
    """Run a recipe to its end and leave the encoder (its averaged weights) in `out`.

    Started by `torchrun`, all its processes train this one encoder (see
    `matvit.training.distributed`); the first of them writes to `out`.

    Args:
        recipe: What to do.
        data: Labelled images, at least as large as the recipe's input.
        out: The run folder.
        validation: Labelled images to classify with the averaged weights, at every size.
        seed: Decides initial weights, order and augmentation.
        device: `auto`, `cpu` or `cuda`.
        init: Encoder to start from.
        teacher: For a recipe that distils, the network to learn from. For one that aligns, the
            encoder to align to; None is `init`.
        cache: Folder that keeps what the teacher says, for this and later runs; None keeps it in
            `out`.
        workers: Threads that fetch images ahead.
        evaluate_every: Epochs from one evaluation on `validation` to the next; None evaluates
            at the end only.
        resume: Go on from the state in `out`.
        checkpoint_minutes: Time from one saved state to the next.
        progress: Show a progress bar on stderr.

    Raises:
        FileExistsError: If `out` already holds a run and `resume` is not set.
        FileNotFoundError: If `resume` is set and there is nothing to resume.
        ValueError: If the state in `out` belongs to another run, the validation images have
            classes that the training images lack, or the processes were started differently.
        ConnectionError: If another process of this run failed.
    """
    out, processes = Path(out), Processes.launched()
    if validation is not None:
        validation = validation.with_classes(data.class_names).sample(_VALIDATION_IMAGES)
    if processes.leads:
        check_run_folder(out, resume=resume)
    resume = resume and (out / STATE).exists()
    with processes.joined(processes.device(torch.device(resolve_device(device)))):
        learned_from: MatViT | Answers | None
        if isinstance(teacher, Teacher):
            check_before_asking(recipe, init, teacher)
            learned_from = ask(
                teacher, data, cache or out / ANSWERS, views=recipe.views,
                min_area=recipe.min_area, progress=progress and processes.leads,
            )  # fmt: skip
        else:
            learned_from = teacher
        trainer = Trainer(
            recipe, data, seed=seed, device=device, init=init, teacher=learned_from,
            workers=workers, processes=processes,
        )  # fmt: skip
        _start(trainer, out, resume=resume)
        processes.agree(trainer.identity())
        try:
            for _ in _steps(trainer, out, checkpoint_minutes, progress=progress):
                if processes.leads and validation is not None and _is_due(trainer, evaluate_every):
                    _evaluate(trainer, out, validation)
        finally:
            if processes.leads and trainer.is_whole:
                save_state(trainer.state(), out)
        return _finish(trainer, out, validation)


def _steps(
    trainer: Trainer, out: Path, checkpoint_minutes: float, *, progress: bool
) -> Iterator[int]:
    """Take the steps that are left, and yield the number of those taken after each."""
    saved, leads, total = time.monotonic(), trainer.processes.leads, trainer.schedule.total_steps
    shown = progress and leads
    with progress_of("training", total, unit="steps", done=trainer.step, shown=shown) as bar:
        for step in range(trainer.step, total):
            phase = trainer.schedule.phase(step)
            losses = trainer.train_step()
            bar.update(1)
            if leads and trainer.step % _REPORT_EVERY == 0:
                report = {size: loss.item() for size, loss in losses.items()}
                bar.set_postfix({size: f"{loss:.3f}" for size, loss in report.items()})
                log(out, {"step": trainer.step, "loss": report, "img_size": phase.img_size})
            if leads and time.monotonic() - saved > 60 * checkpoint_minutes:
                save_state(trainer.state(), out)
                saved = time.monotonic()
            yield trainer.step


def _is_due(trainer: Trainer, evaluate_every: float | None) -> bool:
    """Whether it is time to evaluate; the end of the run has an evaluation of its own."""
    if evaluate_every is None or trainer.step == trainer.schedule.total_steps:
        return False
    return trainer.step % max(1, round(evaluate_every * trainer.schedule.steps_per_epoch)) == 0


def _evaluate(trainer: Trainer, out: Path, validation: LabelledPixels) -> dict[str, float]:
    """Classify with the averaged weights at every size, and log the result."""
    top1 = top1_per_size(trainer.averaged, validation)
    log(out, {"step": trainer.step, "top1": top1})
    return top1


def check_run_folder(out: Path, *, resume: bool) -> None:
    """Make sure that a run may begin in a folder, or go on there.

    Of a run that was stopped while its teacher was asked there is no state yet, only answers.

    Raises:
        FileExistsError: If it holds anything and `resume` is not set.
        FileNotFoundError: If `resume` is set and there is nothing to resume.
    """
    if resume and not any((out / name).exists() for name in (STATE, ANSWERS)):
        raise FileNotFoundError(f"nothing to resume in {out}: no {STATE}; start without resume")
    if not resume and out.exists() and (out.is_file() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; choose another folder, or resume the run in it")


def _start(trainer: Trainer, out: Path, *, resume: bool) -> None:
    """Make the run folder, or pick up the state in it."""
    if resume:
        trainer.restore(load_state(out / STATE))
        return
    if not trainer.processes.leads:
        return
    out.mkdir(parents=True, exist_ok=True)
    description = {"recipe": trainer.recipe.to_dict(), "seed": trainer.seed}
    text = json.dumps(description, indent=2) + "\n"
    write_atomically(out / RECIPE, lambda stream: stream.write(text.encode()))
    save_state(trainer.state(), out)  # from here on there is something to resume


def _finish(trainer: Trainer, out: Path, validation: LabelledPixels | None) -> MatViT:
    """Leave the encoder in the run folder."""
    model = trainer.averaged
    if not trainer.processes.leads:
        return model
    training: dict[str, Any] = {
        "recipe": trainer.recipe.to_dict(),
        "init": trainer.init,
        "teacher": trainer.teacher,
        "seed": trainer.seed,
        "steps": trainer.step,
        "images": len(trainer.data),
        "classes": trainer.data.class_names,
    }
    if validation is not None:
        training["top1"] = _evaluate(trainer, out, validation)
    model.save(out, training=training)
    return model


def top1_per_size(
    model: MatViT, data: LabelledPixels, *, batch_size: int = 256
) -> dict[str, float]:
    """Share of images whose most likely class is the right one, for S, M, L and XL."""
    sizes = trained_sizes(model.config)
    right = np.zeros(len(sizes), dtype=np.int64)
    with torch.inference_mode():
        for rows, images in batches(model, data.pixels, batch_size):
            scores = model.classify(model.vectors(images, sizes))
            right += (scores.argmax(dim=-1).cpu().numpy() == data.labels[rows]).sum(axis=1)
    return {str(size): float(count) / len(data) for size, count in zip(sizes, right, strict=True)}


def load_state(path: Path) -> dict[str, Any]:
    """Read a state, tensors and plain values only.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with open_regular(path) as stream:
            _check_seal(path, stream)
            stream.seek(0)
            state: dict[str, Any] = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # of what is no state torch may raise anything
        if is_exhaustion(error):
            raise
        raise ValueError(f"cannot read {path}: {error}; start again in another folder") from error
    return state


def save_state(state: dict[str, Any], out: Path) -> None:
    """Write a state, sealed by its hash; the one before stays until the new one is whole."""

    def write(stream: BinaryIO) -> None:
        hashing = _Hashing(stream)
        torch.save(state, cast("BinaryIO", hashing))
        stream.write(_SEAL + hashing.digest.hexdigest().encode() + b"\n")

    write_atomically(out / STATE, write)


class _Hashing:
    """A stream that hashes what is written to it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()


def _check_seal(path: Path, stream: FileIO) -> None:
    """Refuse a state that is not the one whose hash is behind it; older states have none.

    Raises:
        ValueError: If it is another one.
    """
    size = os.fstat(stream.fileno()).st_size - _SEAL_BYTES
    stream.seek(max(0, size))
    seal = stream.read()
    if not seal.startswith(_SEAL):
        return
    digest = hashlib.sha256()
    stream.seek(0)
    while size and (block := stream.read(min(size, _BLOCK))):
        digest.update(block)
        size -= len(block)
    if seal != _SEAL + digest.hexdigest().encode() + b"\n":
        raise ValueError(
            f"{path} is damaged: it is not what was written; start again in another folder"
        )


def log(out: Path, record: dict[str, Any]) -> None:
    """Add one JSON object, with the time in seconds since 1970, to the log."""
    with naming(out / LOG), (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": round(time.time(), 1), **record}) + "\n")
