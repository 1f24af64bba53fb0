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
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from tqdm import tqdm

from matvit.batches import Batches, derive_seed
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


class _Trained(NamedTuple):
    """One of the submodels of a step."""

    size: str
    submodel: Submodel
    weight: float


class Trainer:
    """A run in progress: weights, their average, the optimiser and the step.

    Args:
        recipe: What to do.
        data: Labelled images, decoded at the recipe's image size.
        seed: Decides initial weights, order and augmentation.
        device: `auto`, `cpu` or `cuda`.
        init: Encoder whose weights to start from; the head is taken over if it has as many
            classes. None starts from scratch.
        teacher: Encoder whose vectors an aligning recipe draws all sizes to; None is `init`.

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
    ) -> None:
        self.recipe, self.data, self.seed = recipe, data, seed
        self.device = resolve_device(device)
        self._batches = Batches(recipe, data, seed, self.device)
        self.schedule = self._batches.schedule
        self.step = 0
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
        self.model.train()
        torch.manual_seed(derive_seed(self.seed, self.step, 1))  # stochastic depth
        losses = torch.zeros(len(trained), device=self.device)
        for part in range(0, len(images), phase.micro_batch):
            chunk = slice(part, part + phase.micro_batch)
            share = len(images[chunk]) / len(images)
            losses += share * self._backward(phase, trained, images[chunk], labels[chunk], share)
        self._update()
        return _by_name([each.size for each in trained], losses)

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on from this step."""
        return {
            "step": self.step,
            "seed": self.seed,
            "recipe": json.dumps(self.recipe.to_dict(), sort_keys=True),
            "images": self.data.fingerprint,
            "init": json.dumps(self.init),
            "teacher": json.dumps(self.teacher),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: If it belongs to another recipe, seed or data set.
        """
        mine = self.state()
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
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate(self.step) * group["lr_scale"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.model.eval()
        self.step += 1
        self._average()

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
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    progress: bool = False,
) -> MatViT:
    """Run a recipe to its end and leave the encoder (its averaged weights) in `out`.

    Raises:
        FileExistsError: If `out` already holds a run and `resume` is not set.
        FileNotFoundError: If `resume` is set and there is nothing to resume.
        ValueError: If the state in `out` belongs to another run.
    """
    out = Path(out)
    trainer = Trainer(recipe, data, seed=seed, device=device, init=init, teacher=teacher)
    _start(trainer, out, resume=resume)
    try:
        _run(trainer, out, checkpoint_minutes, progress=progress)
    finally:
        save_state(trainer.state(), out)
    return _finish(trainer, out, validation)


def _run(trainer: Trainer, out: Path, checkpoint_minutes: float, *, progress: bool) -> None:
    """Take the steps that are left."""
    saved = time.monotonic()
    steps = range(trainer.step, trainer.schedule.total_steps)
    bar = tqdm(steps, desc=trainer.recipe.name, unit="step", disable=not progress)
    for step in bar:
        phase = trainer.schedule.phase(step)
        losses = trainer.train_step()
        if trainer.step % _REPORT_EVERY == 0:
            report = {size: loss.item() for size, loss in losses.items()}
            bar.set_postfix({size: f"{loss:.3f}" for size, loss in report.items()})
            log(out, {"step": trainer.step, "loss": report, "img_size": phase.img_size})
        if time.monotonic() - saved > 60 * checkpoint_minutes:
            save_state(trainer.state(), out)
            saved = time.monotonic()


def _start(trainer: Trainer, out: Path, *, resume: bool) -> None:
    """Make the run folder, or pick up the state in it."""
    if resume:
        if not (out / STATE).exists():
            raise FileNotFoundError(f"nothing to resume in {out}: no {STATE}; start without resume")
        trainer.restore(load_state(out / STATE))
        return
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder, or resume the run in it")
    out.mkdir(parents=True, exist_ok=True)
    description = {"recipe": trainer.recipe.to_dict(), "seed": trainer.seed}
    (out / "recipe.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    save_state(trainer.state(), out)  # from here on there is something to resume


def _finish(trainer: Trainer, out: Path, validation: LabelledPixels | None) -> MatViT:
    model = trainer.averaged
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
        known = validation.with_classes(trainer.data.class_names)
        training["top1"] = top1_per_size(model, known.sample(_VALIDATION_IMAGES))
        log(out, {"step": trainer.step, "top1": training["top1"]})
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
