from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from matvit.data import ImageSet
from matvit.preprocess import Preprocess
from matvit.training.pixel_cache import CachedPixels, PixelCache

SPEC = Preprocess(img_size=16)


def fill(folder: Path, images: ImageSet, spec: Preprocess = SPEC) -> CachedPixels:
    decoded = (spec.pixels(images.read(row)) for row in range(len(images)))
    return PixelCache(folder).open(images, every(images), spec, decoded)


def every(images: ImageSet) -> np.ndarray:
    return np.arange(len(images))


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_images_that_are_left_out_leave_no_gap(photo_folder, tmp_path):
    images = ImageSet.open(photo_folder)
    white = np.full((16, 16, 3), 255, dtype=np.uint8)
    decoded = [None, white, None, white // 2, *[None] * 8]
    pixels, rows = PixelCache(tmp_path / "cache").open(images, every(images), SPEC, decoded)
    assert rows.tolist() == [1, 3]
    assert np.array_equal(pixels, np.stack([white, white // 2]))


def test_other_images_or_another_size_are_another_entry(photo_folder, tmp_path):
    cache = tmp_path / "cache"
    fill(cache, ImageSet.open(photo_folder))
    larger = fill(cache, ImageSet.open(photo_folder), replace(SPEC, img_size=24))
    assert larger.pixels.shape == (12, 24, 24, 3)
    os.utime(photo_folder / "apple" / "00.png", ns=(1, 1))
    fill(cache, ImageSet.open(photo_folder))
    (photo_folder / "apple" / "00.png").rename(photo_folder / "apple" / "0.png")
    fill(cache, ImageSet.open(photo_folder))
    assert len(entries(cache)) == 4


def test_a_run_that_is_killed_while_it_decodes_leaves_no_entry(photo_folder, tmp_path):
    cache, images = tmp_path / "cache", ImageSet.open(photo_folder)

    def killed():
        yield SPEC.pixels(images.read(0))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PixelCache(cache).open(images, every(images), SPEC, killed())
    assert all(name.endswith(".partial") for name in entries(cache))
    assert len(fill(cache, images).pixels) == 12
    assert len(entries(cache)) == 1


def test_a_set_without_a_readable_image_is_no_entry(photo_folder, tmp_path):
    images = ImageSet.open(photo_folder)
    with pytest.raises(ValueError, match="none of the 12 images in .* can be read"):
        PixelCache(tmp_path / "cache").open(images, every(images), SPEC, [None] * 12)
    assert entries(tmp_path / "cache") == []


def test_a_disk_without_room_is_said_before_anything_is_decoded(
    photo_folder, tmp_path, monkeypatch
):
    images = ImageSet.open(photo_folder)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=12 * 3 * 256 - 1))
    with pytest.raises(OSError, match=r"the decoded images need 0\.0 GB, but .* on another disk"):
        PixelCache(tmp_path / "cache").open(
            images, every(images), SPEC, (pytest.fail("decoded") for _ in range(1))
        )
    assert entries(tmp_path / "cache") == []


def test_what_is_cached_cannot_be_changed_by_accident(photo_folder, tmp_path):
    pixels, _ = fill(tmp_path / "cache", ImageSet.open(photo_folder))
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0
