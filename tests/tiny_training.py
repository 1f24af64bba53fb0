"""A recipe that takes a second, and images that it learns."""

from __future__ import annotations

import numpy as np
import torch

from matvit.config import MatViTConfig
from matvit.model import MatViT
from matvit.training.data import LabelledPixels
from matvit.training.schedule import Phase, Recipe

RECIPE = Recipe(
    name="test",
    model=MatViTConfig(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, dynamic_img_size=True
    ),
    phases=(
        Phase(epochs=2, img_size=8, sizes=("XL",), weights=(1.0,)),
        Phase(epochs=3, img_size=16),
    ),
    batch_size=8,
    drop_path_rate=0.2,
)


def colours(count: int = 30) -> LabelledPixels:
    """Noisy red, green and blue images, classes 0, 1 and 2."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    pixels = rng.integers(0, 80, (count, 16, 16, 3), dtype=np.uint8)
    pixels[np.arange(count), :, :, labels] += 150
    return LabelledPixels(pixels, labels, ["red", "green", "blue"], 0)


def same_weights(first: MatViT, second: MatViT) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)
