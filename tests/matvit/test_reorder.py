"""Sorting hidden units by importance, against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from matvit.config import MatViTConfig
from matvit.conversion.reorder import output_energy, reorder
from matvit.embedding import embed
from matvit.model import AnchoredMatViT, MatViT
from matvit.preprocess import Preprocess
from matvit.torch_runtime import to_input

CONFIG = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)


def build(config: MatViTConfig = CONFIG) -> MatViT:
    torch.manual_seed(0)
    model = MatViT(config, Preprocess(img_size=16), "untrained")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for block in model.backbone.blocks:  # as in a trained encoder: few units do most
            block.mlp.fc2.weight.mul_(torch.logspace(-2, 1, 64)[torch.randperm(64)])
    return model


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)


def test_energy_is_the_mean_square_of_what_a_unit_adds(pixels):
    """Mutants: class token forgotten, layer scale forgotten, mean over images instead of tokens."""
    model = build(replace(CONFIG, init_values=0.3)).double()
    energies = output_energy(model, pixels, batch_size=4)
    block = model.backbone.blocks[0]
    seen = []
    handle = block.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(to_input(pixels, model).double())
        handle.remove()
        hidden = block.mlp.act(block.mlp.fc1(seen[0]))
        for unit in (0, 7, 63):
            added = hidden[..., unit, None] * block.mlp.fc2.weight[:, unit] * block.ls2.gamma
            expected = added.square().sum(dim=-1).mean()
            torch.testing.assert_close(energies[0][unit], expected, rtol=1e-10, atol=0)


def test_the_order_of_a_network_made_by_hand(pixels):
    model = build()
    mlp = model.backbone.blocks[0].mlp
    with torch.no_grad():
        mlp.fc1.weight.zero_()  # every token activates the units alike: gelu(0), gelu(10)
        mlp.fc1.bias.zero_()
        mlp.fc1.bias[[5, 20, 40]] = 10.0
        mlp.fc2.weight.zero_()
        mlp.fc2.weight[0] = 1.0
        mlp.fc2.weight[1, 20] = 3.0  # squared lengths: 1, but 10 for unit 20
    energy = output_energy(model, pixels)[0]
    torch.testing.assert_close(energy[20].item(), 1000.0, rtol=1e-5, atol=0)
    done = reorder(model, pixels).backbone.blocks[0].mlp
    order = [20, 5, 40, *(unit for unit in range(64) if unit not in (5, 20, 40))]
    assert torch.equal(done.fc1.bias, mlp.fc1.bias[order])
    assert torch.equal(done.fc2.weight, mlp.fc2.weight[:, order])


def test_units_that_tie_keep_their_order(pixels):
    model = build()
    mlp = model.backbone.blocks[1].mlp
    with torch.no_grad():
        mlp.fc1.weight.zero_()
        mlp.fc1.bias.fill_(1.0)
        mlp.fc2.weight.fill_(1.0)
        mlp.fc1.weight[:, 0] = torch.arange(64) * 1e-30  # tells the units apart, adds nothing
    done = reorder(model, pixels).backbone.blocks[1].mlp
    assert torch.equal(done.fc1.weight, mlp.fc1.weight)


def test_the_full_size_is_unchanged_but_for_rounding(pixels):
    model = build(replace(CONFIG, init_values=0.5, act_layer="quick_gelu")).double()
    done = reorder(model, pixels)
    images = to_input(pixels, model).double()
    torch.testing.assert_close(done(images), model(images), rtol=0, atol=1e-13)
    assert not torch.equal(
        done.backbone.blocks[0].mlp.fc1.bias, model.backbone.blocks[0].mlp.fc1.bias
    )


def test_small_sizes_come_closer_to_the_full_one(pixels):
    model = build()
    done = reorder(model, pixels)
    full = embed(model, pixels, precision="float32")
    for size in ("S", "M", "L"):
        before, after = (embed(each, pixels, size, precision="float32") for each in (model, done))
        assert (after * full).sum(axis=1).mean() > (before * full).sum(axis=1).mean() + 0.01


def test_the_model_itself_is_left_alone(pixels):
    model = build()
    before = model.fingerprint
    first, second = reorder(model, pixels), reorder(model, pixels)
    assert model.fingerprint == before
    assert first.fingerprint == second.fingerprint != before
    assert not model.backbone.blocks[0].mlp.act._forward_hooks


def test_what_cannot_be_sorted_is_refused(pixels):
    model = build()
    with pytest.raises(ValueError, match="is measured on images; got none"):
        reorder(model, pixels[:0])
    model = AnchoredMatViT.join(model, build())
    with pytest.raises(ValueError, match="untrained has an anchor; sort the encoder it was made"):
        reorder(model, pixels)
