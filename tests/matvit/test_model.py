"""`MatViT` against timm with the same weights, and its submodels against each other.

Mutants of the nested feed-forward network that these tests must catch: a detached bias, a mask
instead of a slice, the last units instead of the first, a width that is clipped in silence, the
output bias left out.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from msgspec.structs import replace
from timm.layers import Mlp
from timm.models.vision_transformer import Block, VisionTransformer

from matvit.config import MatViTConfig
from matvit.model import MatViT
from matvit.nested import NestedBlock, NestedMlp, run
from matvit.preprocess import Preprocess
from matvit.submodel import Submodel

BASE = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=5)
SHAPES = {
    "class token": BASE,
    "average": replace(BASE, global_pool="avg", class_token=False),
    "registers": replace(BASE, reg_tokens=3, no_embed_class=True),
    "layer scale": replace(BASE, init_values=0.3, qk_norm=True),
    "clip-like": replace(BASE, pre_norm=True),
    "any size": replace(BASE, dynamic_img_size=True),
}


def build(config: MatViTConfig = BASE) -> MatViT:
    torch.manual_seed(0)
    model = MatViT(config).double()
    with torch.no_grad():  # timm starts biases at zero: a forgotten one would go unseen
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(count: int = 4, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_width_equals_the_plain_timm_vit(shape):
    model = build(SHAPES[shape])
    plain = VisionTransformer(**SHAPES[shape].to_dict()).double().eval()
    plain.load_state_dict(model.backbone.state_dict())
    pooled = plain.forward_head(plain.forward_features(images()), pre_logits=True)
    expected = pooled / pooled.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model(images()), expected, rtol=0, atol=1e-14)
    logits = model.classify(model.vectors(images(), [model.submodel()]))[0]
    torch.testing.assert_close(logits, plain(images()), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", ["S", "M", "L", "XL", "1xS,2xL"])
def test_embeddings_have_length_one(size):
    norms = build()(images(), size).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-14)


def test_sizes_give_different_embeddings():
    model = build()
    vectors = [model(images(), size) for size in ("S", "M", "L", "XL")]
    for smaller, larger in pairwise(vectors):
        assert not torch.allclose(smaller, larger)


@pytest.mark.parametrize(
    "specs",
    [["S", "M", "L", "XL"], ["XL", "S"], ["1xS,2xM", "1xS,2xXL", "S", "1xXL,2xS"], ["M", "M"]],
)
def test_many_submodels_at_once_equal_one_at_a_time(specs):
    model = build()
    submodels = [model.submodel(spec) for spec in specs]
    together = model.vectors(images(), submodels)
    for row, submodel in zip(together, submodels, strict=True):
        alone = model.vectors(images(), [submodel])[0]
        torch.testing.assert_close(row, alone, rtol=0, atol=1e-13)


def test_shared_prefixes_are_computed_once():
    model = build()
    calls: list[int] = []
    for block in model.backbone.blocks:
        attend = block.attend
        block.attend = lambda x, *sizes, attend=attend: (calls.append(len(x)), attend(x, *sizes))[1]
    model.vectors(images(2), [model.submodel(s) for s in ("3xS", "2xS,1xM", "1xS,2xM")])
    assert calls == [2, 2, 4]  # one state before blocks 1 and 2, two before block 3


def test_what_a_memory_holds_is_not_computed_again():
    model, memory = build(), {}
    first, second = (
        [model.submodel(spec) for spec in specs]
        for specs in (["3xS", "2xS,1xM"], ["1xS,2xM", "2xS,1xM", "XL"])
    )
    calls: list[int] = []
    for block in model.backbone.blocks:
        attend = block.attend
        block.attend = lambda x, *sizes, attend=attend: (calls.append(len(x)), attend(x, *sizes))[1]
    run(model.backbone, images(2), first, memory)
    assert calls == [2, 2, 2]
    found = run(model.backbone, images(2), second, memory)
    assert calls[3:] == [2, 4]  # XL at block 2; it and 1xS,2xM at block 3
    expected = run(model.backbone, images(2), second)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert {len(widths) for widths in memory} == {0, 1, 2, 3}


def test_threads_use_different_submodels_of_one_model():
    model = build()
    sizes = ["S", "M", "L", "XL"] * 8
    expected = {size: model(images(), size) for size in ("S", "M", "L", "XL")}
    with ThreadPoolExecutor(4) as pool:
        for size, vectors in zip(sizes, pool.map(lambda s: model(images(), s), sizes), strict=True):
            assert torch.equal(vectors, expected[size])


def test_submodel_resolves_every_way_of_writing_one():
    model = build()
    assert model.submodel().is_full
    assert model.submodel("3xM") == model.submodel("M") == Submodel((16,) * 3, 64)
    with pytest.raises(ValueError, match="unknown size 'huge'"):
        model.submodel("huge")
    with pytest.raises(ValueError, match="is for 2 blocks"):
        model(images(), Submodel((8, 8), 64))


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="takes 16x16 images, got 24x24"):
        build()(images(size=24))
    anywhere = build(SHAPES["any size"])
    assert anywhere(images(size=24)).shape == (4, 16)
    with pytest.raises(ValueError, match="multiples of 8, got 20x20"):
        anywhere(images(size=20))


def test_an_encoder_without_classes_does_not_classify():
    with pytest.raises(ValueError, match="no classification head"):
        build(replace(BASE, num_classes=0)).classify(torch.zeros(1, 16, dtype=torch.float64))


def test_preprocessing_of_another_size_is_refused():
    with pytest.raises(ValueError, match="makes images of 32 px, the model takes 16"):
        MatViT(BASE, Preprocess(img_size=32))


def test_fingerprint_changes_with_any_weight_and_not_with_the_head():
    model = build().float()
    before = model.fingerprint
    assert model.fingerprint == before
    with torch.no_grad():
        model.backbone.head.weight.add_(1)
    assert model.fingerprint == before
    with torch.no_grad():
        model.backbone.blocks[1].mlp.fc1.bias[3] += 1e-6
    assert model.fingerprint != before


DIM, HIDDEN = 6, 16
WIDTHS = [1, 2, 4, 8, 15, 16]


@pytest.fixture
def ffn() -> NestedMlp:
    torch.manual_seed(0)
    return NestedMlp(DIM, HIDDEN).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 5, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("width", WIDTHS)
def test_sliced_ffn_equals_masked_ffn(ffn, x, width):
    mask = (torch.arange(HIDDEN) < width).double()
    masked = (torch.nn.functional.gelu(x @ ffn.fc1.weight.T + ffn.fc1.bias) * mask) @ (
        ffn.fc2.weight.T
    ) + ffn.fc2.bias
    torch.testing.assert_close(ffn(x, width), masked, rtol=0, atol=1e-14)


def test_full_width_equals_timms_mlp(ffn, x):
    plain = Mlp(DIM, HIDDEN).double()
    plain.load_state_dict(ffn.state_dict())
    assert torch.equal(ffn(x, HIDDEN), plain(x))
    assert torch.equal(ffn(x), plain(x))


@pytest.mark.parametrize("width", WIDTHS)
def test_training_a_width_reaches_its_parameters_and_no_others(ffn, x, width):
    ffn(x, width).square().sum().backward()
    kept = torch.arange(HIDDEN) < width
    for gradient in (ffn.fc1.weight.grad, ffn.fc1.bias.grad, ffn.fc2.weight.grad.T):
        assert (gradient.reshape(HIDDEN, -1) != 0).any(dim=1).equal(kept)
    assert (ffn.fc2.bias.grad != 0).all()


@pytest.mark.parametrize("width", [0, -1, HIDDEN + 1])
def test_widths_out_of_range_are_errors(ffn, x, width):
    with pytest.raises(ValueError, match=rf"width must be within 1\.\.16, got {width}"):
        ffn(x, width)


def test_an_ffn_without_bias_works(x):
    ffn = NestedMlp(DIM, HIDDEN, bias=False).double()
    assert ffn(x, 4).shape == x.shape


def test_a_blocks_two_halves_equal_timms_block(x):
    torch.manual_seed(0)
    nested = NestedBlock(DIM, 2, init_values=0.5, mlp_layer=NestedMlp).double().eval()
    plain = Block(DIM, 2, init_values=0.5).double().eval()
    plain.load_state_dict(nested.state_dict())
    assert torch.equal(nested.feed_forward(nested.attend(x)), plain(x))
