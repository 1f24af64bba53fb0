"""The images of every training step, a function of seed and step alone."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from matvit.augment import augment, mix_images
from matvit.embed import normalize_pixels
from matvit.recipes import Recipe
from matvit.schedule import Schedule
from matvit.training_data import LabelledPixels


class Batches:
    """Shuffled, augmented, normalised batches.

    Args:
        recipe: Decides batch size and augmentation.
        data: Decoded images.
        seed: Decides order and augmentation.
        device: Where images are augmented and returned.
    """

    def __init__(
        self, recipe: Recipe, data: LabelledPixels, seed: int, device: torch.device
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, device
        self.schedule = Schedule(recipe, len(data))
        self._classes = len(data.class_names)
        self._preprocess = recipe.preprocess()
        self._images = torch.from_numpy(data.pixels).permute(0, 3, 1, 2)
        self._labels = torch.from_numpy(data.labels)

    def load(self, step: int, img_size: int) -> tuple[Tensor, Tensor]:
        """Return the images of a step, shape (batch, 3, img_size, img_size), and their classes.

        Returns:
            Normalised images, and the share of each class in them, shape (batch, classes).
        """
        rows = self._rows(step)
        randomness = Generator().manual_seed(derive_seed(self.seed, step, 3))
        images = augment(
            self._images[rows].to(self.device),
            img_size,
            min_area=self.recipe.min_area,
            jitter=self.recipe.jitter,
            grayscale=self.recipe.grayscale,
            generator=randomness,
        )
        images, labels = mix_images(
            images,
            self._labels[rows].to(self.device),
            self._classes,
            mixup=self.recipe.mixup,
            cutmix=self.recipe.cutmix,
            generator=randomness,
        )
        return normalize_pixels(images, self._preprocess), labels

    def _rows(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.schedule.steps_per_epoch)
        shuffle = Generator().manual_seed(derive_seed(self.seed, epoch, 2))
        order = torch.randperm(len(self._labels), generator=shuffle)
        return order[position * self.schedule.batch_size :][: self.schedule.batch_size]


def derive_seed(seed: int, count: int, purpose: int) -> int:
    """Derive independent seeds for every step and purpose."""
    return (seed * 1_000_003 + count) * 8 + purpose
