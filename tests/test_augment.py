from __future__ import annotations

import pytest
import torch
from torch import Generator

from matvit.augment import augment


def ramp(count: int = 200, size: int = 16) -> torch.Tensor:
    """Images whose red channel rises from left to right and green from top to bottom."""
    steps = torch.linspace(0, 255, size)
    red = steps.expand(size, size)
    image = torch.stack([red, red.T, torch.full((size, size), 128.0)])
    return image.round().to(torch.uint8).expand(count, -1, -1, -1).contiguous()


def run(images, size=16, *, min_area=0.3, jitter=0.0, seed=0):
    generator = Generator().manual_seed(seed)
    return augment(images, size, min_area=min_area, jitter=jitter, generator=generator)


def test_about_half_the_images_are_mirrored_and_none_upside_down():
    result = run(ramp())
    mirrored = result[:, 0, :, 0].mean(dim=1) > result[:, 0, :, -1].mean(dim=1)
    assert 0.4 < mirrored.float().mean() < 0.6
    assert (result[:, 1, 0].mean(dim=1) < result[:, 1, -1].mean(dim=1)).all()


def test_crops_keep_between_the_least_area_and_everything():
    result = run(ramp(), min_area=0.25)
    span_x = (result[:, 0, :, 0] - result[:, 0, :, -1]).abs().mean(dim=1) / 255
    span_y = (result[:, 1, 0] - result[:, 1, -1]).abs().mean(dim=1) / 255
    area = span_x * span_y
    # Pixels at the edge are averaged, so spans come out a few per cent short.
    assert area.min() > 0.25 * 0.8
    assert area.max() <= 1
    assert area.max() - area.min() > 0.4


def test_whole_images_come_back_when_the_crop_is_everything():
    images = ramp(8)
    result = run(images, min_area=1.0)
    same = (result - images).abs().amax(dim=(1, 2, 3))
    flipped = (result - images.flip(-1)).abs().amax(dim=(1, 2, 3))
    # The aspect ratio still varies, so only the height or the width is whole.
    assert ((same < 40) | (flipped < 40)).all()


@pytest.mark.parametrize("size", [8, 16, 32])
def test_output_has_the_size_asked_for_and_stays_in_range(size):
    result = run(ramp(4), size, jitter=0.5)
    assert result.shape == (4, 3, size, size)
    assert 0 <= result.min() <= result.max() <= 255


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    stripes[..., ::2] = 255
    result = run(stripes, 8, min_area=0.9)
    assert (result - 127.5).abs().mean() < 30


def test_jitter_changes_brightness_per_image():
    gray = torch.full((100, 3, 8, 8), 100, dtype=torch.uint8)
    levels = run(gray, 8, jitter=0.2).mean(dim=(1, 2, 3))
    assert 80 <= levels.min() < 90
    assert 110 < levels.max() <= 120


def test_the_generator_decides_everything():
    assert torch.equal(run(ramp(9), jitter=0.3, seed=4), run(ramp(9), jitter=0.3, seed=4))
    assert not torch.equal(run(ramp(9), seed=4), run(ramp(9), seed=5))
