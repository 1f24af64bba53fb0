from __future__ import annotations

import pytest
import torch
from torch import Generator

from matvit.training.augment import augment, mix_images


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


def test_the_chosen_share_of_the_images_loses_its_colour():
    def gray(share: float) -> torch.Tensor:
        generator = Generator().manual_seed(0)
        result = augment(
            ramp(400), 16, min_area=1.0, jitter=0.0, grayscale=share, generator=generator
        )
        return (result[:, 0] - result[:, 1]).abs().amax(dim=(1, 2)) < 1e-3

    assert not gray(0.0).any()
    assert gray(1.0).all()
    assert 0.2 < gray(0.3).float().mean() < 0.4


def mix(mixup=0.0, cutmix=0.0, seed=0, count=6):
    """Mix images that hold their own number in every pixel; their classes are their numbers."""
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    generator = Generator().manual_seed(seed)
    mixed, mix = mix_images(images, mixup=mixup, cutmix=cutmix, generator=generator)
    return mixed, mix(torch.eye(count))


def test_without_mixing_images_and_classes_stay():
    images, shares = mix()
    assert torch.equal(images[:, 0, 0, 0], torch.arange(6.0))
    assert torch.equal(shares, torch.eye(6))


@pytest.mark.parametrize("kind", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_the_shares_of_classes_are_those_of_the_pixels(kind):
    mixed_at_all = 0
    for seed in range(30):
        images, shares = mix(**kind, seed=seed)
        # Pixels hold image numbers, so their mean is the mean of the numbers by share.
        by_pixels = images.mean(dim=(1, 2, 3))
        by_shares = shares @ torch.arange(6.0)
        torch.testing.assert_close(by_pixels, by_shares, rtol=1e-4, atol=1e-4)
        assert torch.equal((shares > 0).sum(dim=1) <= 2, torch.ones(6, dtype=torch.bool))
        mixed_at_all += int((shares.max(dim=1).values < 0.99).any())
    assert mixed_at_all > 20


def test_cutmix_pastes_a_rectangle_and_mixup_blends():
    blended, _ = mix(mixup=1.0, seed=3)
    assert all(len(image.unique()) == 1 for image in blended)
    pasted, shares = mix(cutmix=1.0, seed=3)
    assert 0 < shares[0, 1] < 1
    inside = pasted[0, 0] == 1
    rows, columns = inside.any(dim=1), inside.any(dim=0)
    assert torch.equal(inside, rows[:, None] & columns[None, :])
    assert set(pasted[0].unique().tolist()) == {0.0, 1.0}


def test_pairs_are_mixed_whatever_the_rest_of_the_batch():
    _, shares = mix(mixup=1.0, seed=2)
    for first in range(0, 6, 2):
        pair = shares[first : first + 2]
        assert pair.sum().item() == pytest.approx(2)
        assert pair[:, first : first + 2].sum().item() == pytest.approx(2)
    odd_images, odd_shares = mix(mixup=1.0, seed=2, count=5)
    assert odd_shares[4, 4] == 1  # nobody to be mixed with
    assert odd_images[4, 0, 0, 0] == 4


def test_mixing_parameters_follow_the_beta_distribution():
    kept = torch.tensor([mix(mixup=0.5, seed=seed)[1][0, 0].item() for seed in range(400)])
    # Beta(0.5, 0.5): mean 1/2, variance 1/8; 400 draws leave about 0.018 on the mean.
    assert kept.mean().item() == pytest.approx(0.5, abs=0.06)
    assert kept.var().item() == pytest.approx(1 / 8, abs=0.02)


def test_a_part_of_a_batch_is_changed_as_in_the_whole():
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    options = {"min_area": 0.3, "jitter": 0.3, "grayscale": 0.5}
    whole = augment(images, 8, generator=Generator().manual_seed(4), **options)
    parts = [
        augment(
            images[start:stop], 8, generator=Generator().manual_seed(4), part=(start, 9), **options
        )
        for start, stop in ((0, 4), (4, 9))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
