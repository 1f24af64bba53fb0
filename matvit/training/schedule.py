"""When a training run does what."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matvit.training.recipes import Phase, Recipe


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
            raise ValueError(f"recipe {self.recipe.name} has no steps on {self.images} images")

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
        """Linear warm-up, then a cosine to zero at the last step."""
        warmup = min(self.recipe.warmup_steps, self.total_steps // 10)
        if step < warmup:
            return self.recipe.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.total_steps - warmup)
        return self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _steps(self, phase: Phase) -> int:
        return round(phase.epochs * self.steps_per_epoch)
