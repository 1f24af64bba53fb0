"""One training step after another: weights, their average and the optimisers.

Everything random is derived from the seed and the step.
"""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any, NamedTuple

import msgspec
import torch
from msgspec import structs
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.optim import Optimizer

from matvit.device import resolve_device
from matvit.mixes import random_schedule, random_submodel
from matvit.model import MatViT
from matvit.submodel import Submodel
from matvit.torch_runtime import resolve_precision
from matvit.training.batches import Batch, Batches, derive_seed
from matvit.training.checks import check_sizes, check_teacher
from matvit.training.data import LabelledPixels
from matvit.training.distributed import Processes
from matvit.training.losses import alignment, distillation, joint_cross_entropy
from matvit.training.schedule import RANDOM, RANDOM_SCHEDULE, Phase, Recipe, may_go_on_as
from matvit.training.teacher import Answers

_ALONE = Processes()
_BANK = 4096
_NOT_DECAYED = ("_embed", "_token")


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
        teacher: Encoder whose vectors an aligning recipe draws all sizes to; None is `init`, or
            the averaged encoder where a recipe that does more begins to align. For a recipe that
            distils, what another network said about the images.
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
        teacher: MatViT | Answers | None = None,
        workers: int = 1,
        processes: Processes = _ALONE,
    ) -> None:
        self.recipe, self.data, self.seed, self.processes = recipe, data, seed, processes
        self.device = processes.device(torch.device(resolve_device(device)))
        answers = teacher if isinstance(teacher, Answers) else None
        aligned_to = None if isinstance(teacher, Answers) else teacher
        check_teacher(recipe, init, teacher)
        self._batches = Batches(
            recipe, data, seed, self.device,
            workers=workers, process=(processes.rank, processes.count), answers=answers,
        )  # fmt: skip
        self.schedule = self._batches.schedule
        self.step = 0
        self.is_whole = True
        self.init = _identity(init)
        self.teacher = _identity(teacher or init) if recipe.aligns or recipe.distills else None
        torch.manual_seed(seed)
        config = structs.replace(recipe.model, num_classes=len(data.class_names))
        self.model = MatViT(
            config, recipe.preprocess(), recipe.name, drop_path_rate=recipe.drop_path_rate
        ).to(self.device)
        check_sizes(recipe, self.model, aligned_to or init)
        if init is not None:
            self.model.start_from(init)
        self._aligned_to: MatViT | None = None
        if recipe.aligns and (aligned_to is not None or not recipe.aligns_to_itself):
            self._aligned_to = _frozen(aligned_to or init, self.model)
        # What the teacher's classes are read from; no part of the encoder.
        self.guide = None
        if answers is not None and answers.classes:
            self.guide = nn.Linear(config.embed_dim, answers.classes).to(self.device)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        use_trainable_attention(self.model)
        self._bank = None
        if answers is not None:
            self._bank = self._batches.projection(answers.bank(_BANK).to(self.device))
        self._all = self.model if self.guide is None else nn.ModuleList([self.model, self.guide])
        self.optimizers = build_optimizers(
            self._all,
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
        if phase.objective == "align" and self._aligned_to is None:
            self._aligned_to = _frozen(self.averaged, self.model)
        batch = self._batches.load(self.step, self._batches.img_size(self.step))
        trained = self._trained(phase)
        losses = torch.zeros(len(trained), device=self.device)
        self.model.train()
        mine = self._batches.micro_batches(self.step)
        for part in mine:
            chunk = slice(part.start - mine[0].start, part.stop - mine[0].start)
            share = len(part) / self.schedule.batch_size
            # Stochastic depth; the first seed is that of the step, whatever the process.
            torch.manual_seed(derive_seed(self.seed, self.step, 1) + (part.start << 32))
            losses += share * self._backward(phase, trained, batch.part(chunk), share)
        gradients = [p.grad for p in self._all.parameters() if p.grad is not None]
        self.processes.add_up([losses, *gradients])
        self._update()
        return _by_name([each.size for each in trained], losses)

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on from this step."""
        beside: dict[str, nn.Module | None] = {"guide": self.guide}
        if self.recipe.aligns_to_itself:
            beside["aligned_to"] = self._aligned_to
        return {
            **self.identity(),
            **{name: module.state_dict() for name, module in beside.items() if module is not None},
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
        """Go on from a saved state, for longer or less long if the recipe has a cooldown.

        Raises:
            ValueError: If it belongs to another recipe, seed or data set, or it is too late to
                change the length.
        """
        mine = self.identity()
        for key in ("recipe", "seed", "images", "init", "teacher"):
            if state[key] != mine[key] and not (key == "recipe" and self._may_go_on_from(state)):
                raise ValueError(
                    f"cannot resume: {_difference(key, state[key], mine[key])}; "
                    "resume with what the run was started with"
                )
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        if self.guide is not None:
            self.guide.load_state_dict(state["guide"])
        if "aligned_to" in state:
            self._aligned_to = _frozen(self.averaged, self.model)
            self._aligned_to.load_state_dict(state["aligned_to"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.step = state["step"]

    def _may_go_on_from(self, state: dict[str, Any]) -> bool:
        was = msgspec.json.decode(state["recipe"], type=Recipe)
        return may_go_on_as(was, self.recipe, len(self.data), state["step"])

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
        if size not in (RANDOM, RANDOM_SCHEDULE):
            return self.model.submodel(size)
        draw = random_submodel if size == RANDOM else random_schedule
        return draw(self.model.config, derive_seed(self.seed, self.step, 5) * 64 + row)

    def _backward(
        self, phase: Phase, trained: list[_Trained], batch: Batch, share: float
    ) -> Tensor:
        """Add the gradients of some images, and return each size's mean loss on them."""
        submodels = [each.submodel for each in trained]
        weights = [each.weight for each in trained]
        smoothing = self.recipe.label_smoothing
        with self._autocast():
            if phase.objective == "align":
                loss, per_size = alignment(
                    self.model,
                    batch.images,
                    self._targets(batch.images),
                    submodels,
                    weights,
                    neighbour_weight=phase.neighbour_weight,
                )
            elif phase.objective == "distill":
                assert batch.lesson is not None
                loss, per_size = distillation(
                    self.model,
                    batch.images,
                    batch.labels,
                    batch.lesson,
                    submodels,
                    weights,
                    terms=phase,
                    head=self.guide,
                    bank=self._bank,
                    label_smoothing=smoothing,
                )
            else:
                loss, per_size = joint_cross_entropy(
                    self.model,
                    batch.images,
                    batch.labels,
                    submodels,
                    weights,
                    label_smoothing=smoothing,
                )
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.step}")
        torch.autograd.backward(loss * share)
        return per_size

    def _targets(self, images: Tensor) -> Tensor:
        """Embed images as the teacher does."""
        assert self._aligned_to is not None
        with torch.no_grad():
            return self._aligned_to.encode(images).float()

    def _update(self) -> None:
        """Apply the gradients and forget them."""
        self.is_whole = False
        nn.utils.clip_grad_norm_(self._all.parameters(), self.recipe.clip_norm)
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


def _difference(key: str, was: int | str, now: int | str) -> str:
    """Say what changed; of a recipe only the settings that did."""
    if key != "recipe":
        return f"{key} was {was!r} and is now {now!r}"
    old, new = json.loads(str(was)), json.loads(str(now))
    changed = [name for name in new if old.get(name) != new[name]]
    return "; ".join(f"{name} was {old.get(name)!r} and is now {new[name]!r}" for name in changed)


def _by_name(names: list[str], losses: Tensor) -> dict[str, Tensor]:
    """Average the losses that have the same name."""
    return {
        name: losses[[row for row, its_name in enumerate(names) if its_name == name]].mean()
        for name in dict.fromkeys(names)
    }


def _identity(encoder: MatViT | Answers | None) -> dict[str, str] | None:
    if encoder is None:
        return None
    if isinstance(encoder, Answers):
        return dict(encoder.identity)
    # Conversions of one encoder share its fingerprint, but not the weights of their sizes.
    return {
        "name": encoder.name,
        "fingerprint": encoder.fingerprint,
        "weights": encoder.weights_fingerprint,
    }


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


def use_trainable_attention(model: MatViT) -> None:
    """On a CPU, the backward pass of fused attention takes about twice that of plain matmuls."""
    if model.device.type == "cpu":
        for module in model.modules():
            if isinstance(module, Attention):
                setattr(module, "fused_attn", False)  # noqa: B010 -- timm declares it final


def build_optimizers(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else.

    In one short trial (docs/LOG.md) Muon brought the training loss lower than AdamW alone did in
    as many steps. Its updates are scaled to the size of AdamW's, so both follow one
    learning rate. Biases, norms and embeddings are not decayed.

    Args:
        model: A model whose blocks are named `blocks.0`, `blocks.1` and so on.
        learning_rate: For what comes after the blocks.
        weight_decay: For the parameters that are decayed.
        layer_decay: The learning rate of each layer, as a share of the next one's.

    Returns:
        Optimisers whose parameter groups name their share of the learning rate, `lr_scale`.

    References:
        Muon is Scalable for LLM Training, section 2.2. https://arxiv.org/abs/2502.16982
        Layer-wise decay: ELECTRA, appendix A. https://arxiv.org/abs/2003.10555
    """
    groups: dict[tuple[str, float], list[Tensor]] = {}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    layers = 1 + max((_layer(name, 0) for name, _ in named), default=0)
    for name, parameter in named:
        scale = layer_decay ** (layers - _layer(name, layers))
        groups.setdefault((_kind(name, parameter), scale), []).append(parameter)

    def chosen(kind: str, decay: float) -> list[dict[str, Any]]:
        return [
            {
                "params": parameters,
                "weight_decay": decay,
                "lr": learning_rate * scale,
                "lr_scale": scale,
            }
            for (its_kind, scale), parameters in groups.items()
            if its_kind == kind
        ]

    return [
        torch.optim.Muon(chosen("block", weight_decay), adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*chosen("decayed", weight_decay), *chosen("plain", 0.0)], fused=True),
    ]


def _kind(name: str, parameter: Tensor) -> str:
    if "blocks." in name and parameter.ndim == 2:
        return "block"
    return "decayed" if parameter.ndim >= 2 and not name.endswith(_NOT_DECAYED) else "plain"


def _layer(name: str, layers: int) -> int:
    """Depth of a parameter: 0 before the first block, 1 for it, `layers` after the last one."""
    if match := re.search(r"\bblocks\.([0-9]+)\.", name):
        return int(match[1]) + 1
    return 0 if re.search(r"patch_embed|pos_embed|_token|norm_pre", name) else layers
