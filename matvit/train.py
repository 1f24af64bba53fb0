"""The training loop: a recipe, labelled images and a seed become an encoder.

A run folder is an encoder like any other (`model.safetensors`, `config.json`), with the recipe
(`recipe.json`), the log (`log.jsonl`, one object per report) and the state to resume from
(`state.pt`) beside it. Everything random is derived from the seed and the step, so a resumed run
takes the very steps that an uninterrupted one would have taken.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from tqdm import tqdm

from matvit.batches import Batches, derive_seed
from matvit.distributed import Processes
from matvit.embed import resolve_device, resolve_precision
from matvit.evaluate_training import top1_per_size
from matvit.losses import alignment, joint_cross_entropy
from matvit.mix_n_match import random_submodel
from matvit.model import MatViT
from matvit.optimizers import build_optimizers
from matvit.recipes import RANDOM, Phase, Recipe
from matvit.run_folder import STATE, load_state, log, save_state
from matvit.submodel import Submodel
from matvit.training_data import LabelledPixels

_REPORT_EVERY = 50
_VALIDATION_IMAGES = 1000
_ALONE = Processes()


class _Trained(NamedTuple):
    """One of the submodels of a step."""

    size: str
    submodel: Submodel
    weight: float


class Trainer:
    """A run in progress: weights, their average, the optimiser and the step.

    Attributes:
        is_whole: Whether all of these belong to the same step, as they do unless a step was
            interrupted while it changed them.

    Args:
        recipe: What to do.
        data: Labelled images, decoded at the recipe's image size.
        seed: Decides initial weights, order and augmentation.
        device: `auto`, `cpu` or `cuda`.
        init: Encoder whose weights to start from; the head is taken over if it has as many
            classes. None starts from scratch.
        teacher: Encoder whose vectors an aligning recipe draws all sizes to; None is `init`.
        workers: Threads that fetch images ahead.
        processes: Which part of each batch this process computes; they must have joined.

    Raises:
        ValueError: If `init` is missing and the recipe needs it, or has another architecture,
            or the teacher sees other images or has vectors of another dimension.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: LabelledPixels,
        *,
        seed: int = 0,
        device: str = "auto",
        init: MatViT | None = None,
        teacher: MatViT | None = None,
        workers: int = 1,
        processes: Processes = _ALONE,
    ) -> None:
        self.recipe, self.data, self.seed, self.processes = recipe, data, seed, processes
        self.device = processes.device(resolve_device(device))
        self._batches = Batches(
            recipe, data, seed, self.device,
            workers=workers, process=(processes.rank, processes.count),
        )  # fmt: skip
        self.schedule = self._batches.schedule
        self.step = 0
        self.is_whole = True
        self.init = _identity(init)
        self.teacher = _identity(teacher or init)
        torch.manual_seed(seed)
        config = replace(recipe.model, num_classes=len(data.class_names))
        self.model = MatViT(
            config, recipe.preprocess(), recipe.name, drop_path_rate=recipe.drop_path_rate
        ).to(self.device)
        aligns = any(phase.objective == "align" for phase in recipe.phases)
        if (recipe.needs_init or aligns) and init is None:
            raise ValueError(f"recipe {recipe.name} goes on from an encoder; name it with init")
        if init is not None:
            self.model.start_from(init)
        self._teacher = _frozen(teacher or init, self.model) if aligns else None
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        _use_trainable_attention(self.model)
        self.optimizers = build_optimizers(
            self.model,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        )

    def train_step(self) -> dict[str, Tensor]:
        """Take one step.

        Returns:
            The loss of each size trained, by its name in the recipe, as a scalar on the device
            (reading it waits for the step to end).

        Raises:
            FloatingPointError: If the loss is not finite.
        """
        phase = self.schedule.phase(self.step)
        images, labels = self._batches.load(self.step, phase.img_size)
        trained = self._trained(phase)
        losses = torch.zeros(len(trained), device=self.device)
        self.model.train()
        mine = self._batches.micro_batches(self.step)
        for part in mine:
            chunk = slice(part.start - mine[0].start, part.stop - mine[0].start)
            share = len(part) / self.schedule.batch_size
            # Stochastic depth; the first seed is that of the step, whatever the process.
            torch.manual_seed(derive_seed(self.seed, self.step, 1) + (part.start << 32))
            losses += share * self._backward(phase, trained, images[chunk], labels[chunk], share)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.processes.add_up([losses, *gradients])
        self._update()
        return _by_name([each.size for each in trained], losses)

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on from this step."""
        return {
            **self.identity(),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def identity(self) -> dict[str, int | str]:
        """Return what a run is known by, and the step that it is at."""
        return {
            "step": self.step,
            "seed": self.seed,
            "recipe": json.dumps(self.recipe.to_dict(), sort_keys=True),
            "images": self.data.fingerprint,
            "init": json.dumps(self.init),
            "teacher": json.dumps(self.teacher),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: If it belongs to another recipe, seed or data set.
        """
        mine = self.identity()
        for key in ("recipe", "seed", "images", "init", "teacher"):
            if state[key] != mine[key]:
                raise ValueError(
                    f"cannot resume: {key} was {state[key]!r} and is now {mine[key]!r}; "
                    "resume with what the run was started with"
                )
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.step = state["step"]

    def _trained(self, phase: Phase) -> list[_Trained]:
        """Return what this step trains: the name of a size, the submodel and its weight."""
        chosen = list(range(len(phase.sizes)))
        if phase.sampled:
            rng = random.Random(derive_seed(self.seed, self.step, 4))  # noqa: S311 -- no secret
            chosen = rng.choices(chosen, phase.weights)
        return [
            _Trained(
                phase.sizes[row],
                self._submodel(phase.sizes[row], row),
                1.0 if phase.sampled else phase.weights[row],
            )
            for row in chosen
        ]

    def _submodel(self, size: str, row: int) -> Submodel:
        if size != RANDOM:
            return self.model.submodel(size)
        return random_submodel(self.model.config, derive_seed(self.seed, self.step, 5) * 64 + row)

    def _backward(
        self, phase: Phase, trained: list[_Trained], images: Tensor, labels: Tensor, share: float
    ) -> Tensor:
        """Add the gradients of some images, and return each size's mean loss on them."""
        submodels = [each.submodel for each in trained]
        weights = [each.weight for each in trained]
        with self._autocast():
            if phase.objective == "align":
                loss, per_size = alignment(
                    self.model,
                    images,
                    self._targets(images),
                    submodels,
                    weights,
                    neighbour_weight=phase.neighbour_weight,
                )
            else:
                loss, per_size = joint_cross_entropy(
                    self.model,
                    images,
                    labels,
                    submodels,
                    weights,
                    label_smoothing=self.recipe.label_smoothing,
                )
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.step}")
        torch.autograd.backward(loss * share)
        return per_size

    def _targets(self, images: Tensor) -> Tensor:
        """Embed images as the teacher does."""
        assert self._teacher is not None
        with torch.no_grad():
            return self._teacher.encode(images).float()

    def _update(self) -> None:
        """Apply the gradients and forget them."""
        self.is_whole = False
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate(self.step) * group["lr_scale"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.model.eval()
        self.step += 1
        self._average()
        self.is_whole = True

    def _average(self) -> None:
        """Update the averaged weights; the average starts short and grows to full length."""
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for kept, now in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)

    def _autocast(self) -> torch.autocast:
        dtype = resolve_precision(self.device, "auto")
        return torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def train(
    recipe: Recipe,
    data: LabelledPixels,
    out: str | Path,
    *,
    validation: LabelledPixels | None = None,
    seed: int = 0,
    device: str = "auto",
    init: MatViT | None = None,
    teacher: MatViT | None = None,
    workers: int = 1,
    evaluate_every: float | None = None,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    progress: bool = False,
) -> MatViT:
    """Run a recipe to its end and leave the encoder (its averaged weights) in `out`.

    Started by `torchrun`, all its processes train this one encoder (see `matvit.distributed`);
    the first of them writes to `out`.

    Args:
        recipe: What to do.
        data: Labelled images, at least as large as the recipe's input.
        out: The run folder.
        validation: Labelled images to classify with the averaged weights, at every size.
        seed: Decides initial weights, order and augmentation.
        device: `auto`, `cpu` or `cuda`.
        init: Encoder to start from.
        teacher: Encoder to align to; None is `init`.
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
    with processes.joined(processes.device(resolve_device(device))):
        trainer = Trainer(
            recipe, data, seed=seed, device=device, init=init, teacher=teacher, workers=workers,
            processes=processes,
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
    saved, leads = time.monotonic(), trainer.processes.leads
    steps = range(trainer.step, trainer.schedule.total_steps)
    bar = tqdm(steps, desc=trainer.recipe.name, unit="step", disable=not (progress and leads))
    for step in bar:
        phase = trainer.schedule.phase(step)
        losses = trainer.train_step()
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


def _start(trainer: Trainer, out: Path, *, resume: bool) -> None:
    """Make the run folder, or pick up the state in it."""
    if resume:
        if not (out / STATE).exists():
            raise FileNotFoundError(f"nothing to resume in {out}: no {STATE}; start without resume")
        trainer.restore(load_state(out / STATE))
        return
    if not trainer.processes.leads:
        return
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder, or resume the run in it")
    out.mkdir(parents=True, exist_ok=True)
    description = {"recipe": trainer.recipe.to_dict(), "seed": trainer.seed}
    (out / "recipe.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
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


def _by_name(names: list[str], losses: Tensor) -> dict[str, Tensor]:
    """Average the losses that have the same name."""
    return {
        name: losses[[row for row, its_name in enumerate(names) if its_name == name]].mean()
        for name in dict.fromkeys(names)
    }


def _identity(encoder: MatViT | None) -> dict[str, str] | None:
    if encoder is None:
        return None
    return {"name": encoder.name, "fingerprint": encoder.fingerprint}


def _frozen(teacher: MatViT | None, student: MatViT) -> MatViT:
    """Copy a teacher to where the student is, once it is certain that the two can be compared.

    Raises:
        ValueError: If they see other images or have vectors of another dimension.
    """
    assert teacher is not None
    theirs = (teacher.preprocess, teacher.config.embed_dim)
    if theirs != (student.preprocess, student.config.embed_dim):
        raise ValueError(
            f"teacher {teacher.name} has vectors of dimension {teacher.config.embed_dim} and the "
            f"preprocessing {teacher.preprocess}; what is trained has {student.config.embed_dim} "
            f"and {student.preprocess}"
        )
    return copy.deepcopy(teacher).to(student.device).eval().requires_grad_(False)


def _use_trainable_attention(model: MatViT) -> None:
    """On a CPU, the backward pass of fused attention takes about twice that of plain matmuls."""
    if model.device.type == "cpu":
        for module in model.modules():
            if isinstance(module, Attention):
                setattr(module, "fused_attn", False)  # noqa: B010 -- timm declares it final
