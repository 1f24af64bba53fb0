"""Merging of tokens: the oracle is a loop over images and tokens that shares no code with it.

Mutants that these tests must catch: registers that merge, sizes forgotten in attention or in the
mean over tokens, a plain mean where a merged token merges again, ties that go to the last one, and
tokens of one image that merge into those of another.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from matvit.config import MatViTConfig
from matvit.embedding import embed
from matvit.extraction import extract
from matvit.merging import Tokens, merge
from matvit.model import AnchoredMatViT, MatViT

CONFIG = MatViTConfig(img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2)


def slow_merge(x, sizes, count, prefix):
    """Merge the tokens of one image, one after the other."""
    firsts = range(prefix, len(x), 2)
    seconds = range(prefix + 1, len(x), 2)

    def cosine(one, other):
        return x[one] @ x[other] / np.linalg.norm(x[one]) / np.linalg.norm(x[other])

    partner = {one: max(seconds, key=lambda other: (cosine(one, other), -other)) for one in firsts}
    order = sorted(firsts, key=lambda one: (-cosine(one, partner[one]), one))
    sums, counts = {i: sizes[i] * x[i] for i in range(len(x))}, dict(enumerate(sizes))
    for one in order[:count]:
        sums[partner[one]] = sums[partner[one]] + sums.pop(one)
        counts[partner[one]] += counts.pop(one)
    return np.array([sums[i] / counts[i] for i in counts]), np.array(list(counts.values()))


def random_tokens(images=5, tokens=19, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, tokens, 8, dtype=torch.float64, generator=generator)
    sizes = torch.randint(1, 5, (images, tokens), generator=generator).double()
    sizes[:, :4] = 1  # class token and registers
    return Tokens(x, sizes)


@pytest.mark.parametrize("prefix", [0, 1, 4])
@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("whole", [True, False])
def test_tokens_merge_as_a_slow_loop_merges_them(prefix, count, whole):
    tokens = random_tokens()
    merged = merge(Tokens(tokens.x) if whole else tokens, count, prefix)
    sizes = torch.ones_like(tokens.sizes) if whole else tokens.sizes
    for image in range(len(tokens.x)):
        expected = slow_merge(tokens.x[image].numpy(), sizes[image].numpy(), count, prefix)
        for found, wanted in zip(merged, expected, strict=True):
            np.testing.assert_allclose(found[image].numpy(), wanted, atol=1e-12)
    assert torch.equal(merged.x[:, :prefix], tokens.x[:, :prefix])
    assert torch.equal(merged.sizes.sum(dim=1), sizes.sum(dim=1))


def test_among_equals_the_first_goes_first():
    x = torch.ones(2, 9, 4)
    x[:, 0] = 7
    merged = merge(Tokens(x), 2, 1)
    assert merged.sizes.tolist() == [[1, 3, 1, 1, 1, 1, 1]] * 2
    assert torch.equal(merged.x[:, 1:], torch.ones(2, 6, 4))


def test_without_merging_nothing_is_touched():
    tokens = random_tokens()
    assert merge(tokens, 0, 1) is tokens


def test_gradients_flow_through_merged_tokens_by_their_sizes():
    tokens = random_tokens(images=2, tokens=9)
    x = tokens.x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: merge(Tokens(x, tokens.sizes), 3, 1).x, x)
    merged = merge(Tokens(x, tokens.sizes), 3, 1)
    (merged.x * merged.sizes[:, :, None]).sum().backward()  # the sum of all, whatever merged
    torch.testing.assert_close(x.grad, tokens.sizes[:, :, None].expand_as(x))


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("schedule", ["S~", "XL~8,4,2", "M~4,4,2"])
def test_merging_tokens_that_are_the_same_changes_nothing(pool, schedule):
    """One colour and no positions: every patch token is the same, and a merged one counts fully."""
    torch.manual_seed(0)
    model = MatViT(replace(CONFIG, global_pool=pool, reg_tokens=2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.backbone.pos_embed.zero_()
    images = torch.full((2, 3, 32, 32), 0.3, dtype=torch.float64)
    whole = schedule.partition("~")[0]
    torch.testing.assert_close(model(images, schedule), model(images, whole), rtol=0, atol=1e-13)


def test_merging_tokens_that_differ_changes_the_vector():
    model = MatViT(CONFIG)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(model(images, "S~"), model(images, "S"), atol=1e-4)


def test_threads_with_two_schedules_share_one_model():
    torch.manual_seed(0)
    model = MatViT(CONFIG)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    schedules = ["S~", "XL~4,2,1", "S", "M~0,0,8"] * 8
    expected = {text: embed(model, pixels, text, precision="float32") for text in schedules}
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda text: embed(model, pixels, text, precision="float32"), schedules)
        for text, vectors in zip(schedules, found, strict=True):
            np.testing.assert_array_equal(vectors, expected[text])


def test_a_larger_input_merges_the_same_share():
    model = MatViT(replace(CONFIG, dynamic_img_size=True))
    lengths = []
    attend = model.backbone.blocks[2].attend
    model.backbone.blocks[2].attend = lambda x, *sizes: (
        lengths.append(x.shape[1]),
        attend(x, *sizes),
    )[1]
    for side in (32, 64):
        model(torch.randn(1, 3, side, side), "S~4,4,0")
    assert lengths == [1 + 8, 1 + 32]


def test_all_hidden_units_of_a_converted_encoder_are_the_originals_merging_or_not():
    torch.manual_seed(0)
    original = MatViT(CONFIG)
    converted = AnchoredMatViT.join(MatViT(CONFIG), original)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(converted(images, "XL~"), original(images, "XL~"))
    assert not torch.equal(converted(images, "L~"), original(images, "L~"))


def test_a_plain_timm_model_merges_nothing():
    with pytest.raises(ValueError, match="S~ merges tokens, .*; extract S, or write it as ONNX"):
        extract(MatViT(CONFIG), "S~")
    small = extract(MatViT(CONFIG), "S")
    with pytest.raises(ValueError, match="the extracted submodel S and holds no S~"):
        small.submodel("S~")
