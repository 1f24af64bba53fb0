from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from matvit.config import MatViTConfig
from matvit.training.batches import Batches
from matvit.training.data import LabelledPixels
from matvit.training.schedule import Phase, Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(
    name="test",
    model=MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2),
    phases=(Phase(epochs=3, img_size=16, micro_batch=4),),
    batch_size=10,
    mixup=0.8,
    cutmix=1.0,
    grayscale=0.3,
)


def noise(count: int = 35) -> LabelledPixels:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 20, 3), dtype=np.uint8)
    return LabelledPixels(pixels, np.arange(count) % 5, list("abcde"), 0)


@pytest.mark.parametrize("workers", [1, 3])
def test_fetching_ahead_changes_nothing_in_whatever_order_steps_are_asked_for(workers):
    ahead = Batches(RECIPE, noise(), 7, CPU, workers=workers)
    plain = Batches(RECIPE, noise(), 7, CPU, workers=0)
    for step in (0, 1, 2, 5, 3, 8, 8):
        images, labels, _ = ahead.load(step, 16)
        expected, expected_labels, _ = plain.load(step, 16)
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_every_epoch_sees_images_once_in_an_order_of_its_own():
    numbered = replace(noise(), pixels=np.arange(35, dtype=np.uint8)[:, None, None, None])
    batches = Batches(replace(RECIPE, batch_size=7), numbered, 0, CPU)
    seen = torch.stack([batches.fetch(step)[0].flatten() for step in range(10)])
    first, second = seen[:5].flatten().tolist(), seen[5:].flatten().tolist()
    assert sorted(first) == sorted(second) == list(range(35))
    assert first != second


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_parts_of_all_processes_are_the_whole_batch(count):
    whole, whole_labels, _ = Batches(RECIPE, noise(), 1, CPU).load(4, 16)
    parts = [Batches(RECIPE, noise(), 1, CPU, process=(rank, count)) for rank in range(count)]
    loaded = [part.load(4, 16) for part in parts]
    assert torch.equal(torch.cat([batch.images for batch in loaded]), whole)
    assert torch.equal(torch.cat([batch.labels for batch in loaded]), whole_labels)


def test_processes_take_the_micro_batches_of_a_single_one():
    def taken(recipe: Recipe, count: int) -> list[list[range]]:
        return [
            Batches(recipe, noise(), 0, CPU, process=(rank, count)).micro_batches(0)
            for rank in range(count)
        ]

    single = [range(4), range(4, 8), range(8, 10)]
    assert taken(RECIPE, 1) == [single]
    assert taken(RECIPE, 2) == [single[:1], single[1:]]
    large = replace(RECIPE, phases=(Phase(epochs=1, img_size=16),))
    assert taken(large, 1) == [[range(10)]]
    assert taken(large, 2) == [[range(6)], [range(6, 10)]]  # 5 would part a mixed pair


def test_more_processes_than_pairs_are_refused():
    with pytest.raises(ValueError, match="5 micro-batches of 2, too few for 6 processes"):
        Batches(RECIPE, noise(), 0, CPU, process=(5, 6))


def test_images_on_disk_give_the_same_batches(tmp_path):
    data = noise()
    np.save(tmp_path / "pixels.npy", data.pixels)
    mapped = replace(data, pixels=np.load(tmp_path / "pixels.npy", mmap_mode="r"))
    images, labels, _ = Batches(RECIPE, mapped, 0, CPU).load(3, 16)
    expected, expected_labels, _ = Batches(RECIPE, data, 0, CPU).load(3, 16)
    assert torch.equal(images, expected)
    assert torch.equal(labels, expected_labels)
