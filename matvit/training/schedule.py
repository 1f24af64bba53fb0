"""What a training run does: its phases, the settings of all of them, and the step-by-step schedule.

Phases differ in what they train (which sizes, at which weights) and at which input size; one
learning-rate schedule runs through all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
import numpy as np

from matvit.config import MatViTConfig
from matvit.preprocess import Preprocess

RANDOM, RANDOM_SCHEDULE = "random", "random~"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training.

    Args:
        epochs: Passes over the data; fractions allowed.
        img_size: Side of the input in pixels.
        sizes: Submodels trained, as people write them; `"random"` is one that each step draws
            anew (see `matvit.mixes.random_submodel`), `"random~"` one that merges tokens too (see
            `matvit.mixes.random_schedule`).
        weights: Weight of each size's loss.
        sampled: Train one of the sizes in each step, drawn with probabilities in proportion to
            `weights`, instead of all of them.
        objective: `"classify"` is cross-entropy on labels; `"align"` draws the embeddings of all
            sizes to those of one encoder at its full size: of the one that is named, of the one
            that the run started from if it does nothing but align, else of the averaged encoder
            where aligning begins. It never changes. `"distill"` learns from what another network
            said about the images (see `matvit.training.teacher`).
        label_weight: When distilling, weight of the cross-entropy on labels.
        score_weight: When distilling, weight of the divergence from the teacher's class scores.
        vector_weight: When distilling, weight of 1 - cosine to the teacher's vectors.
        neighbour_weight: Weight of the neighbours' divergence beside 1 - cosine; when distilling,
            4,096 vectors of the teacher's are among the neighbours.
        resolutions: Sides of the input, each with its share of the steps, which draw one; empty
            is `img_size` in all of them.
        micro_batch: Images per forward pass at `img_size`; gradients of a step are added up over
            them. This decides speed and memory, the draws of stochastic depth, and among how many
            images `neighbour_weight` looks for neighbours.
    """

    epochs: float
    img_size: int
    sizes: tuple[str, ...] = ("S", "M", "L", "XL")
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    sampled: bool = False
    objective: Literal["classify", "align", "distill"] = "classify"
    label_weight: float = 1.0
    score_weight: float = 1.0
    vector_weight: float = 1.0
    neighbour_weight: float = 0.0
    resolutions: tuple[tuple[int, float], ...] = ()
    micro_batch: int = 128

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.weights) or min(self.weights) <= 0:
            raise ValueError(
                f"a phase needs one weight above 0 for each of its sizes {list(self.sizes)}, "
                f"got {list(self.weights)}"
            )
        if self.objective not in ("classify", "align", "distill"):
            raise ValueError(
                f"objective must be distill, classify or align, got {self.objective!r}"
            )
        if self.epochs <= 0 or self.micro_batch < 1 or self.neighbour_weight < 0:
            raise ValueError(
                "epochs must be above 0, micro_batch at least 1 and neighbour_weight at least 0, "
                f"got {self.epochs}, {self.micro_batch} and {self.neighbour_weight}"
            )
        if self.neighbour_weight and self.micro_batch < 2:
            raise ValueError("neighbour_weight needs a micro_batch of at least 2, got 1")
        lessons = (self.label_weight, self.score_weight, self.vector_weight)
        if min(lessons) < 0 or not any((*lessons, self.neighbour_weight)):
            raise ValueError(
                "label_weight, score_weight and vector_weight must be at least 0, one of them "
                f"above, got {lessons}"
            )
        if any(side < 1 or share <= 0 for side, share in self.resolutions):
            raise ValueError(
                f"resolutions are sides with shares above 0, got {list(self.resolutions)}"
            )

    @property
    def sides(self) -> tuple[int, ...]:
        """Every side that the input may have, in pixels."""
        return tuple(side for side, _ in self.resolutions) or (self.img_size,)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, but for the data and the seed.

    Args:
        name: What to call it.
        model: Architecture; the number of classes is taken from the data.
        phases: What is trained, in order.
        batch_size: Images per step.
        learning_rate: Peak of the schedule.
        weight_decay: Applied to matrices only, not to biases, norms and embeddings.
        layer_decay: Learning rate of each layer, as a share of the next one's.
        warmup_steps: Steps of linear warm-up; a cosine to zero follows.
        cooldown: Instead of the cosine: the rate stays at its peak, and falls in a straight line
            to zero over this last share of the steps.
        label_smoothing: Of the cross-entropy.
        clip_norm: Largest gradient norm.
        drop_path_rate: Stochastic depth.
        min_area: Smallest share of an image that a random crop keeps.
        jitter: Strength of the brightness and contrast changes.
        grayscale: Share of the images that lose their colour.
        mixup: Parameter of mixup's beta distribution; 0 for no mixup.
        cutmix: The same for CutMix; with both, each step draws one.
        views: When distilling, how many views of each image the teacher is asked about: the whole
            of it, then random crops, half of them mirrored. Each epoch shows one of them. If it is
            the whole alone, the encoder sees random crops of what the teacher speaks of.
        whitening: When distilling, to what power of their deviation the principal components of
            the teacher's vectors are divided: 0 keeps cosines, 1 makes all directions equal.
        ema_decay: Decay of the averaged weights, which are the ones that are kept.
        needs_init: Whether it goes on from the weights of another encoder.
    """

    name: str
    model: MatViTConfig
    phases: tuple[Phase, ...]
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    warmup_steps: int = 200
    cooldown: float | None = None
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    drop_path_rate: float = 0.0
    min_area: float = 0.35
    jitter: float = 0.2
    grayscale: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    views: int = 4
    whitening: float = 0.25
    ema_decay: float = 0.999
    needs_init: bool = False

    def __post_init__(self) -> None:
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(
                f"mixup and cutmix must be at least 0, got {self.mixup} and {self.cutmix}"
            )
        if self.cooldown is not None and not 0 < self.cooldown <= 1:
            raise ValueError(f"cooldown must be above 0 and at most 1, got {self.cooldown}")
        if self.views < 1:
            raise ValueError(f"views must be at least 1, got {self.views}")

    @property
    def objectives(self) -> list[str]:
        """What the phases do, in order."""
        return [phase.objective for phase in self.phases]

    @property
    def aligns(self) -> bool:
        """Whether some phase draws all sizes to the vectors of one encoder."""
        return "align" in self.objectives

    @property
    def aligns_to_itself(self) -> bool:
        """Whether that encoder is the one that the phases before have made."""
        return self.aligns and self.objectives[0] != "align"

    @property
    def distills(self) -> bool:
        """Whether some phase learns from another network."""
        return "distill" in self.objectives

    def preprocess(self) -> Preprocess:
        """Return the preprocessing of the encoder that this recipe trains."""
        return Preprocess(img_size=self.model.img_size)

    def to_dict(self) -> dict[str, Any]:
        """Return every setting as plain JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


@dataclass(frozen=True)
class Schedule:
    """Which phase and which learning rate a step has.

    Args:
        recipe: The recipe.
        images: Images in the training set.

    Raises:
        ValueError: If the recipe amounts to no step at all.
    """

    recipe: Recipe
    images: int

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            most = max(phase.epochs for phase in self.recipe.phases)
            needed = self.recipe.batch_size * (math.floor(0.5 / most) + 1)
            raise ValueError(
                f"recipe {self.recipe.name} has no steps on {self.images:,} images; it takes "
                f"{needed:,} images, {self.recipe.batch_size} to a step, or more epochs"
            )

    @property
    def batch_size(self) -> int:
        """Images per step; all of them if there are fewer than the recipe asks for."""
        return min(self.recipe.batch_size, self.images)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass; the rest of the images wait for the next shuffle."""
        return self.images // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return sum(self._steps(phase) for phase in self.recipe.phases)

    def phase(self, step: int) -> Phase:
        """Return the phase that a step belongs to."""
        for phase in self.recipe.phases:
            step -= self._steps(phase)
            if step < 0:
                return phase
        return self.recipe.phases[-1]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero at the last step, or the recipe's cooldown."""
        warmup = min(self.recipe.warmup_steps, self.total_steps // 10)
        if step < warmup:
            return self.recipe.learning_rate * (step + 1) / warmup
        if self.recipe.cooldown is not None:
            left = (self.total_steps - step) / (self.recipe.cooldown * self.total_steps)
            return self.recipe.learning_rate * min(1.0, left)
        done = (step - warmup) / max(1, self.total_steps - warmup)
        return self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _steps(self, phase: Phase) -> int:
        return round(phase.epochs * self.steps_per_epoch)


def may_go_on_as(was: Recipe, now: Recipe, images: int, step: int) -> bool:
    """Whether a run may change its recipe: in length alone, and in no step that it has taken.

    That is while the learning rate is at the peak where it stays, in the first phase, by both.

    References:
        A length that need not be known beforehand: MiniCPM, section 4.2.
        https://arxiv.org/abs/2404.06395
    """

    def regardless(recipe: Recipe) -> Recipe:
        return replace(recipe, phases=tuple(replace(each, epochs=1) for each in recipe.phases))

    if was.cooldown is None or regardless(was) != regardless(now):
        return False
    schedules = Schedule(was, images), Schedule(now, images)
    return all(
        schedule.phase(step) == schedule.recipe.phases[0]
        and schedule.learning_rate(step) == schedule.recipe.learning_rate
        for schedule in schedules
    )


def of_length(
    recipe: Recipe, images: int, *, epochs: float | None = None, max_steps: int | None = None
) -> Recipe:
    """Return a recipe that takes longer or less long, its phases in the same proportion.

    Args:
        recipe: The recipe.
        images: Images in the training set.
        epochs: Passes over the data in all phases together; None keeps them.
        max_steps: Most steps in all phases together; None sets no limit.

    Raises:
        ValueError: If one is out of range, or it amounts to no step at all.
    """
    if epochs is not None and not 0 < epochs < math.inf:
        raise ValueError(f"epochs must be a number above 0, got {epochs:g}")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    if epochs is not None:
        share = epochs / sum(phase.epochs for phase in recipe.phases)
        phases = tuple(replace(each, epochs=share * each.epochs) for each in recipe.phases)
        recipe = replace(recipe, phases=phases)
    schedule = Schedule(recipe, images)
    if max_steps is None or schedule.total_steps <= max_steps:
        return recipe
    ends = np.cumsum([phase.epochs for phase in recipe.phases])
    steps = np.diff(np.round(max_steps * ends / ends[-1]).astype(int), prepend=0)
    phases = tuple(
        replace(phase, epochs=float(count / schedule.steps_per_epoch))
        for phase, count in zip(recipe.phases, steps, strict=True)
        if count
    )
    return replace(recipe, phases=phases)
