from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from matvit.config import MatViTConfig
from matvit.cost import count_macs, count_params
from matvit.extraction import extract
from matvit.model import MatViT
from matvit.submodel import Granularity, Submodel

SHAPES = [
    MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2),
    MatViTConfig(
        img_size=24, patch_size=4, embed_dim=24, depth=3, num_heads=3, mlp_ratio=2,
        global_pool="avg", class_token=False, reg_tokens=2, qkv_bias=False, qk_norm=True,
        init_values=1e-5, num_classes=7,
    ),
    MatViTConfig(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, no_embed_class=True,
        reg_tokens=4, pre_norm=True, fc_norm=True,
    ),
]  # fmt: skip


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("size", ["S", "M", "L", "XL", "mixed"])
def test_macs_equal_torchs_own_counter(config, size):
    model = MatViT(config)
    widths = tuple(3 + 5 * block for block in range(config.depth))
    submodel = Submodel(widths, config.hidden_dim) if size == "mixed" else model.submodel(size)
    images = torch.zeros(1, 3, config.img_size, config.img_size)
    # Fused attention is counted differently from version to version; plain products are not.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images, submodel)
    assert counter.get_total_flops() == 2 * count_macs(config, submodel)


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("counts", [(), (1,), (0, 2), (2, 1)])
def test_macs_of_merging_equal_torchs_own_counter(config, counts):
    model = MatViT(config)
    zeros = [0] * (config.depth - len(counts)) if len(counts) > 1 else []
    submodel = model.submodel("M~" + ",".join(map(str, [*counts, *zeros])))
    images = torch.zeros(2, 3, config.img_size, config.img_size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images, submodel)
    assert submodel.merged
    assert counter.get_total_flops() == 2 * 2 * count_macs(config, submodel)


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("size", list(Granularity))
def test_params_equal_those_of_the_extracted_encoder(config, size):
    model = MatViT(config)
    counted = sum(parameter.numel() for parameter in extract(model, size.value).parameters())
    assert count_params(config, model.submodel(size.value)) == counted


def test_vit_b_16_costs_what_the_literature_says():
    config = MatViTConfig(img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12)
    sizes = [Submodel.uniform(size, depth=12, hidden_dim=3072) for size in Granularity]
    macs = [count_macs(config, size) for size in sizes]
    assert macs[-1] == pytest.approx(17.56e9, rel=1e-3)
    assert [round(value / macs[-1], 3) for value in macs] == [0.444, 0.524, 0.682, 1.0]
    assert count_params(config, sizes[-1]) == pytest.approx(85.8e6, rel=1e-3)


def test_larger_inputs_cost_more_and_must_fit():
    config = SHAPES[0]
    full = Submodel((64, 64), 64)
    assert count_macs(config, full, 32) > count_macs(config, full, 16) == count_macs(config, full)
    with pytest.raises(ValueError, match="multiple of 8, got 20"):
        count_macs(config, full, 20)


def test_a_submodel_of_another_model_is_refused():
    with pytest.raises(ValueError, match="merges tokens of 16 patches, this model has 4"):
        count_macs(SHAPES[0], Submodel((8, 8), 64, merged=(1, 0), patches=16))
    with pytest.raises(ValueError, match="is for 3 blocks of 64 hidden units, this model has 2"):
        count_macs(SHAPES[0], Submodel((8, 8, 8), 64))
    with pytest.raises(ValueError, match="of 128 hidden units, this model has 2 of 64"):
        count_params(SHAPES[0], Submodel((8, 8), 128))
