"""Training-time changes to images, in batches, on the device that trains."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample
from torchvision.transforms.v2.functional import rgb_to_grayscale


def augment(
    images: UInt8[Tensor, "batch 3 height width"],
    size: int,
    *,
    min_area: float,
    jitter: float,
    grayscale: float = 0.0,
    generator: Generator,
    part: tuple[int, int] | None = None,
    crops: Float[Tensor, "batch 2 3"] | None = None,
) -> Float[Tensor, "batch 3 size size"]:
    """Crop at random, flip at random, vary brightness, contrast and colour, resize.

    Args:
        images: Pixels 0..255.
        size: Side of the output in pixels.
        min_area: Smallest share of the image that a crop keeps; the largest is 1.
        jitter: Brightness and contrast are scaled by factors from 1 - jitter to 1 + jitter.
        grayscale: Share of the images that lose their colour.
        generator: Source of randomness, on the CPU.
        part: If these images are only a part of a batch, the place of the first of them and the
            number of images in the batch; each is then changed as it would be in the whole.
        crops: What to crop and flip, as `random_crops` returns it; None draws it.

    Returns:
        Pixels on the scale 0..255.
    """
    start, batch = part or (0, len(images))
    draws = _Draws(generator, batch, slice(start, start + len(images)))
    resized = crop(images, _crops(draws, min_area) if crops is None else crops, size)
    return _drop_color(_jitter(resized, jitter, draws), grayscale, draws)


def random_crops(count: int, min_area: float, generator: Generator) -> Float[Tensor, "count 2 3"]:
    """Draw crops for `crop`, half of them mirrored.

    References:
        Random-size crops with an aspect ratio of 3/4 to 4/3: Going Deeper with Convolutions,
        section 6. https://arxiv.org/abs/1409.4842
    """
    return _crops(_Draws(generator, count, slice(0, count)), min_area)


def crop(
    images: UInt8[Tensor, "batch 3 height width"],
    crops: Float[Tensor, "batch 2 3"],
    size: int,
    mode: str = "bilinear",
) -> Float[Tensor, "batch 3 size size"]:
    """Cut a part out of every image and resize it.

    Args:
        images: Pixels 0..255.
        crops: Affine maps from output to input coordinates, which go from -1 to 1.
        size: Side of the output in pixels.
        mode: `bilinear` or `bicubic`; the latter overshoots at edges.
    """
    # Sample finely and average, or shrinking would alias.
    oversample = max(1, round(images.shape[-1] / size))
    shape = [len(images), 3, size * oversample, size * oversample]
    grid = affine_grid(crops.to(images.device), shape, align_corners=False)
    cropped = grid_sample(images.float(), grid, mode, "reflection", align_corners=False)
    return avg_pool2d(cropped, oversample) if oversample > 1 else cropped


class Mix(NamedTuple):
    """How the images of a batch were mixed: each with its neighbour.

    Attributes:
        kept: Share of an image that is its own.
    """

    kept: float

    def __call__(self, targets: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Mix what belongs to the images as they were mixed."""
        return targets * self.kept + targets[_partners(targets)] * (1 - self.kept)


def mix_images(
    images: Float[Tensor, "batch 3 height width"],
    *,
    mixup: float,
    cutmix: float,
    generator: Generator,
) -> tuple[Float[Tensor, "batch 3 height width"], Mix]:
    """Mix every image with its neighbour in the batch.

    The first image is mixed with the second, the third with the fourth and so on, so that any
    even slice of a batch can be mixed on its own; the last image of an odd batch stays as it is.
    If both kinds are on, each step draws one.

    Args:
        images: Pixels.
        mixup: Both parameters of the beta distribution that blends two images; 0 for never.
        cutmix: The same for the share of a rectangle cut from the other image; 0 for never.
        generator: Source of randomness, on the CPU.

    Returns:
        Mixed pixels, and how to mix their classes alike.

    References:
        mixup: Beyond empirical risk minimization. https://arxiv.org/abs/1710.09412
        CutMix, section 3.1. https://arxiv.org/abs/1905.04899
    """
    if not mixup and not cutmix:
        return images, Mix(1.0)
    cuts = bool(cutmix) and (not mixup or torch.rand(1, generator=generator).item() < 0.5)
    mix = Mix(_beta(cutmix if cuts else mixup, generator))
    if not cuts:
        return mix(images), mix
    images, kept = _paste(images, images[_partners(images)], mix.kept, generator)
    return images, Mix(kept)


def _partners(batch: Tensor) -> Int[Tensor, "batch"]:
    """Row of each image's neighbour; the last of an odd batch is its own."""
    return (torch.arange(len(batch), device=batch.device) ^ 1).clamp(max=len(batch) - 1)


def _paste(
    images: Float[Tensor, "batch 3 height width"],
    others: Float[Tensor, "batch 3 height width"],
    kept: float,
    generator: Generator,
) -> tuple[Float[Tensor, "batch 3 height width"], float]:
    """Paste a rectangle of the others; return what share of the images is really kept."""
    height, width = images.shape[-2:]
    centre_y, centre_x = torch.rand(2, generator=generator).tolist()
    half = math.sqrt(1 - kept) / 2
    top, bottom = (min(max(round((centre_y + d) * height), 0), height) for d in (-half, half))
    left, right = (min(max(round((centre_x + d) * width), 0), width) for d in (-half, half))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _beta(alpha: float, generator: Generator) -> float:
    """Draw from the beta distribution with both parameters alpha, from a generator of our own."""
    sample = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator)
    return float(sample[0] / sample.sum())


def _drop_color(
    images: Float[Tensor, "batch 3 height width"], share: float, draws: _Draws
) -> Float[Tensor, "batch 3 height width"]:
    if share == 0:
        return images
    chosen = (draws.uniform(0.0, 1.0) < share).to(images.device)
    gray: Tensor = rgb_to_grayscale(images, num_output_channels=3)
    return torch.where(chosen.view(-1, 1, 1, 1), gray, images)


def _crops(draws: _Draws, min_area: float) -> Float[Tensor, "count 2 3"]:
    area = draws.uniform(min_area, 1.0)
    aspect = draws.uniform(math.log(3 / 4), math.log(4 / 3)).exp()
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    theta = torch.zeros(len(area), 2, 3)
    theta[:, 0, 0] = width * draws.sign()
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (1 - width) * draws.uniform(-1.0, 1.0)
    theta[:, 1, 2] = (1 - height) * draws.uniform(-1.0, 1.0)
    return theta


def _jitter(
    images: Float[Tensor, "batch 3 height width"], amount: float, draws: _Draws
) -> Float[Tensor, "batch 3 height width"]:
    if amount == 0:
        return images
    brightness = draws.uniform(1 - amount, 1 + amount).view(-1, 1, 1, 1).to(images.device)
    contrast = draws.uniform(1 - amount, 1 + amount).view(-1, 1, 1, 1).to(images.device)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean * brightness).clamp(0, 255)


class _Draws(NamedTuple):
    """Random numbers for some images of a batch: those that they would get in the whole of it."""

    generator: Generator
    batch: int
    chosen: slice

    def uniform(self, low: float, high: float) -> Float[Tensor, "chosen"]:
        """Draw one number for each of the images."""
        return torch.rand(self.batch, generator=self.generator)[self.chosen] * (high - low) + low

    def sign(self) -> Int[Tensor, "chosen"]:
        """Draw -1 or 1 for each of the images."""
        return torch.randint(0, 2, (self.batch,), generator=self.generator)[self.chosen] * 2 - 1
