from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from matvit.config import MatViTConfig
from matvit.cost import count_macs
from matvit.embedding import ContinuedEmbedding, added_macs, embed
from matvit.model import AnchoredMatViT, MatViT
from matvit.submodel import Submodel

CONFIG = MatViTConfig(img_size=16, patch_size=4, embed_dim=16, depth=4, num_heads=2)
SIZES = ["S", "2xS,2xXL", "3xS,1xM", "XL", "1xM,3xS", "S~4,4,2,0", "2xS,2xM~4,4,0,2", "XL~0,0,8,0"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MatViT(CONFIG)


@pytest.fixture(scope="module")
def converted(model):
    torch.manual_seed(1)
    return AnchoredMatViT.join(MatViT(CONFIG), model)


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(("first", "second"), list(permutations(SIZES, 2)))
def test_going_on_gives_the_vectors_of_a_run_of_its_own_bit_for_bit(model, first, second):
    images = pixels(5)
    continued = ContinuedEmbedding(model, images)
    np.testing.assert_array_equal(continued.embed(first), embed(model, images, first))
    np.testing.assert_array_equal(continued.embed(second), embed(model, images, second))


def test_it_goes_on_from_whichever_earlier_run_shares_most(model):
    continued = ContinuedEmbedding(model, pixels(2))
    for size in ["S", "XL"]:
        continued.embed(size)
    shared = count_macs(CONFIG, model.submodel("3xS,1xXL")) - continued.added_macs("3xS,1xXL")
    assert shared == count_macs(CONFIG, model.submodel("S")) - ffn_macs("S", block=3)
    np.testing.assert_array_equal(continued.embed("3xS,1xXL"), embed(model, pixels(2), "3xS,1xXL"))


def test_bfloat16_goes_on_the_same_way(model):
    images = pixels(6)
    continued = ContinuedEmbedding(model, images, precision="bfloat16")
    for size in SIZES:
        expected = embed(model, images, size, precision="bfloat16")
        np.testing.assert_array_equal(continued.embed(size), expected)


@pytest.mark.parametrize(("first", "second"), list(permutations(SIZES, 2)))
def test_added_macs_equal_torchs_own_count_of_what_runs(model, first, second):
    continued = ContinuedEmbedding(model, pixels(1))
    continued.embed(first)
    before, promised = continued.macs, continued.added_macs(second)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        continued.embed(second)
    assert counter.get_total_flops() == 2 * promised
    assert continued.macs == before + promised


def test_the_same_submodel_again_costs_nothing(model):
    continued = ContinuedEmbedding(model, pixels(1))
    first = continued.embed("S")
    with FlopCounterMode(display=False) as counter:
        np.testing.assert_array_equal(continued.embed("S"), first)
    assert counter.get_total_flops() == 0
    assert continued.macs == count_macs(CONFIG, model.submodel("S"))


def test_some_images_go_on_alone(model):
    images = pixels(6)
    continued = ContinuedEmbedding(model, images)
    continued.embed("S")
    part = continued.take(np.array([4, 1]))
    np.testing.assert_allclose(
        part.embed("2xS,2xXL"), embed(model, images, "2xS,2xXL")[[4, 1]], atol=1e-6
    )
    assert part.macs > continued.macs


def test_the_full_size_of_a_converted_encoder_shares_nothing_with_the_others(converted, model):
    images = pixels(3)
    continued = ContinuedEmbedding(converted, images)
    for size in ["3xXL,1xL", "XL", "2xXL,2xL"]:
        np.testing.assert_array_equal(continued.embed(size), embed(converted, images, size))
    full, near = model.submodel("XL"), model.submodel("3xXL,1xL")
    assert added_macs(converted, full, [near]) == count_macs(CONFIG, full)
    assert added_macs(model, full, [near]) < count_macs(CONFIG, full)


def test_what_cannot_be_embedded_is_refused(model):
    with pytest.raises(ValueError, match="expected uint8 pixels, got float64"):
        ContinuedEmbedding(model, pixels(1) / 255)
    with pytest.raises(ValueError, match="takes 16x16 images, got 8x8"):
        ContinuedEmbedding(model, pixels(1)[:, :8, :8])
    with pytest.raises(ValueError, match="3 blocks, not 4"):
        ContinuedEmbedding(model, pixels(1)).embed("3xS")


def test_an_encoder_in_training_is_refused():
    with pytest.raises(ValueError, match="in training mode; call eval"):
        ContinuedEmbedding(MatViT(CONFIG).train(), pixels(1))


def ffn_macs(size, block):
    """Multiply-accumulates of one feed-forward network, written out."""
    tokens = (16 // 4) ** 2 + 1
    width = Submodel.parse(size, depth=4, hidden_dim=64).widths[block]
    return 2 * tokens * 16 * width
