from __future__ import annotations

import torch

from matvit.config import MatViTConfig
from matvit.model import MatViT
from matvit.training.trainer import build_optimizers

CONFIG = MatViTConfig(
    img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, reg_tokens=1
)


def test_every_parameter_is_updated_by_exactly_one_group():
    model = MatViT(CONFIG)
    groups = [
        group
        for optimizer in build_optimizers(model, learning_rate=1e-3, weight_decay=0.1)
        for group in optimizer.param_groups
    ]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


def test_only_weights_are_decayed():
    model = MatViT(CONFIG)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in build_optimizers(model, learning_rate=1e-3, weight_decay=0.1):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = name_of[id(parameter)]
                is_weight = name.endswith("weight") and "norm" not in name
                assert (group["weight_decay"] > 0) == is_weight, name


def test_muon_takes_the_matrices_of_the_blocks():
    model = MatViT(CONFIG)
    muon, adamw = build_optimizers(model, learning_rate=1e-3, weight_decay=0.1)
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert len(muon.param_groups[0]["params"]) == 4 * CONFIG.depth


def test_layer_decay_slows_earlier_layers_by_a_constant_factor():
    model = MatViT(CONFIG)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    built = build_optimizers(model, learning_rate=1e-3, weight_decay=0.1, layer_decay=0.5)
    scale_of = {
        name_of[id(parameter)].removeprefix("backbone."): (group["lr_scale"], group["lr"])
        for optimizer in built
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        "cls_token": 0.125,
        "reg_token": 0.125,
        "pos_embed": 0.125,
        "patch_embed.proj.weight": 0.125,
        "blocks.0.attn.qkv.weight": 0.25,
        "blocks.0.norm1.bias": 0.25,
        "blocks.1.mlp.fc2.weight": 0.5,
        "norm.weight": 1.0,
        "head.weight": 1.0,
    }
    for name, scale in expected.items():
        assert scale_of[name] == (scale, 1e-3 * scale), name
    assert len(scale_of) == len(name_of)
