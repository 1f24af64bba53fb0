"""Training-time changes to images, in batches, on the device that trains."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample


def augment(
    images: UInt8[Tensor, "batch 3 height width"],
    size: int,
    *,
    min_area: float,
    jitter: float,
    generator: Generator,
) -> Float[Tensor, "batch 3 size size"]:
    """Crop at random, flip at random, vary brightness and contrast, resize.

    Args:
        images: Pixels 0..255.
        size: Side of the output in pixels.
        min_area: Smallest share of the image that a crop keeps; the largest is 1.
        jitter: Brightness and contrast are scaled by factors from 1 - jitter to 1 + jitter.
        generator: Source of randomness, on the CPU.

    Returns:
        Pixels on the scale 0..255.

    References:
        Random-size crops with an aspect ratio of 3/4 to 4/3: Going Deeper with Convolutions,
        section 6. https://arxiv.org/abs/1409.4842
    """
    theta = _random_crops(len(images), min_area, generator).to(images.device)
    # Sample finely and average, or shrinking would alias.
    oversample = max(1, round(images.shape[-1] / size))
    shape = [len(images), 3, size * oversample, size * oversample]
    grid = affine_grid(theta, shape, align_corners=False)
    cropped = grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    resized = avg_pool2d(cropped, oversample) if oversample > 1 else cropped
    return _jitter(resized, jitter, generator)


def _random_crops(count: int, min_area: float, generator: Generator) -> Float[Tensor, "count 2 3"]:
    """Affine maps from output to input coordinates, half of them mirrored."""
    area = _uniform(count, min_area, 1.0, generator)
    aspect = _uniform(count, math.log(3 / 4), math.log(4 / 3), generator).exp()
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    mirror = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = width * mirror
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (1 - width) * _uniform(count, -1.0, 1.0, generator)
    theta[:, 1, 2] = (1 - height) * _uniform(count, -1.0, 1.0, generator)
    return theta


def _jitter(
    images: Float[Tensor, "batch 3 height width"], amount: float, generator: Generator
) -> Float[Tensor, "batch 3 height width"]:
    if amount == 0:
        return images
    shape = (len(images), 1, 1, 1)
    brightness = _uniform(len(images), 1 - amount, 1 + amount, generator).view(shape)
    contrast = _uniform(len(images), 1 - amount, 1 + amount, generator).view(shape)
    brightness, contrast = brightness.to(images.device), contrast.to(images.device)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean * brightness).clamp(0, 255)


def _uniform(count: int, low: float, high: float, generator: Generator) -> Float[Tensor, "count"]:
    return torch.rand(count, generator=generator) * (high - low) + low
