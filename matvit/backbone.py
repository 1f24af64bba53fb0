"""One set of weights: a timm ViT whose feed-forward networks run at any width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from matvit.config import MatViTConfig
from matvit.layers import NestedBlock, NestedMlp, timm_arguments
from matvit.submodel import Submodel


def build(config: MatViTConfig, drop_path_rate: float = 0.0) -> VisionTransformer:
    """Build a timm ViT whose feed-forward networks run at any width."""
    return VisionTransformer(
        **timm_arguments(config),
        drop_path_rate=drop_path_rate,
        block_fn=NestedBlock,
        mlp_layer=NestedMlp,
    )


def run(
    backbone: VisionTransformer,
    images: Float[Tensor, "batch 3 height width"],
    submodels: Sequence[Submodel],
) -> Float[Tensor, "submodels batch tokens dim"]:
    """Run several submodels of one set of weights; see `MatViT.features`."""
    states = [stem(backbone, images)]
    state_of = [0] * len(submodels)
    for index, block in enumerate(backbone.blocks):
        assert isinstance(block, NestedBlock)
        branches = [
            (state, submodel.widths[index])
            for state, submodel in zip(state_of, submodels, strict=True)
        ]
        distinct = list(dict.fromkeys(branches))
        attended = block.attend(torch.cat(states)).chunk(len(states))
        states = [block.feed_forward(attended[state], width) for state, width in distinct]
        state_of = [distinct.index(branch) for branch in branches]
    tokens: Tensor = backbone.norm(torch.stack([states[state] for state in state_of]))
    return tokens


def stem(
    backbone: VisionTransformer, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch tokens dim"]:
    """Run everything before the first block: patches, positions, prefix tokens."""
    patches = backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(images)))
    tokens: Tensor = backbone.norm_pre(patches)
    return tokens


def pool(
    backbone: VisionTransformer, features: Float[Tensor, "*batch tokens dim"]
) -> Float[Tensor, "*batch dim"]:
    """Reduce tokens to one vector per image, not normalised."""
    pooled: Tensor = backbone.forward_head(features.flatten(0, -3), pre_logits=True)
    return pooled.view(*features.shape[:-2], pooled.shape[-1])


def tensors(backbone: VisionTransformer) -> dict[str, Tensor]:
    """Weights under timm's names, detached, on the CPU."""
    return {
        key: value.detach().to("cpu", torch.float32) for key, value in backbone.state_dict().items()
    }


def check_images(config: MatViTConfig, images: Tensor) -> None:
    """Refuse images of another size than the model takes.

    Raises:
        ValueError: If they are.
    """
    size, patch = config.img_size, config.patch_size
    height, width = images.shape[-2:]
    if config.dynamic_img_size:
        if height % patch or width % patch or not height or not width:
            raise ValueError(f"image sides must be multiples of {patch}, got {height}x{width}")
    elif (height, width) != (size, size):
        raise ValueError(f"this encoder takes {size}x{size} images, got {height}x{width}")
