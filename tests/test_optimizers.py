from __future__ import annotations

import torch

from matvit.config import MatViTConfig
from matvit.model import MatViT
from matvit.optimizers import build_optimizers

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
