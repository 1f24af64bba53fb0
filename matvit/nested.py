"""MatFormer: one Vision Transformer that holds many encoders, each nested in the next.

The blocks of a ViT alternate attention and a feed-forward network. Here the first `width` hidden
units of every feed-forward network are a network of their own, so that one set of weights runs at
any width, block by block: a `Submodel` is one width per block. All of them share the attention,
the embedding of the patches and the space that their vectors are in. Between the two halves of a
block tokens may be merged, see `matvit.merging`.

References:
    MatFormer: Nested Transformer for Elastic Inference, section 3 (MatViT in section 4.2).
    https://arxiv.org/abs/2310.07707
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from timm.layers.activations import GELUTanh, QuickGELU
from timm.layers.mlp import Mlp, SwiGLU
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear

from matvit.config import MatViTConfig
from matvit.merging import Tokens, merge
from matvit.submodel import Submodel

Key = TypeVar("Key")

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": GELUTanh,
    "quick_gelu": QuickGELU,
    "silu": nn.SiLU,
}

if hasattr(os, "register_at_fork"):
    # A forked process has none of the threads that torch believes to have: it would wait for ever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

Blocks = tuple[tuple[int, int], ...]
"""Tokens merged and hidden units kept, of some first blocks."""

Memory = dict[Blocks, Tokens]
"""Hidden states by the blocks that made them; see `run`."""


class NestedMlp(Mlp):
    """Feed-forward network whose first `width` hidden units are a network of their own.

    Sliced, not masked: a masked network still multiplies the zeros, so its smaller sizes would
    be no cheaper to run. Parameters are named and shaped as in timm's `Mlp`, so a plain ViT's
    weights load unchanged.

    References:
        MatFormer, section 3.1.
    """

    def forward(
        self, x: Float[Tensor, "*batch tokens dim"], width: int | None = None
    ) -> Float[Tensor, "*batch tokens dim"]:
        """Run the nested network that keeps the first `width` hidden units (None: all).

        Raises:
            ValueError: If `width` is outside 1..hidden_dim.
        """
        return _second(self, self.hidden(x, _checked(width, len(self.fc1.weight))))

    def hidden(
        self, x: Float[Tensor, "*batch tokens dim"], width: int
    ) -> Float[Tensor, "*batch tokens width"]:
        """Activations of the first `width` hidden units."""
        hidden: Tensor = self.drop1(self.act(_first(self.fc1, x, width)))
        return hidden


class NestedSwiGLU(SwiGLU):
    """The same of two first layers, one of which gates the other; both are cut alike.

    Parameters are named and shaped as in timm's `SwiGLU`.
    """

    def forward(
        self, x: Float[Tensor, "*batch tokens dim"], width: int | None = None
    ) -> Float[Tensor, "*batch tokens dim"]:
        """Run the nested network that keeps the first `width` hidden units (None: all).

        Raises:
            ValueError: If `width` is outside 1..hidden_dim.
        """
        return _second(self, self.hidden(x, _checked(width, len(self.fc1_x.weight))))

    def hidden(
        self, x: Float[Tensor, "*batch tokens dim"], width: int
    ) -> Float[Tensor, "*batch tokens width"]:
        """Activations of the first `width` hidden units."""
        gate = self.act(_first(self.fc1_g, x, width))
        hidden: Tensor = self.drop1(gate * _first(self.fc1_x, x, width))
        return hidden


def _checked(width: int | None, hidden_dim: int) -> int:
    """A Python slice would clip in silence and the cost reported would be wrong."""
    width = hidden_dim if width is None else width
    if not 1 <= width <= hidden_dim:
        raise ValueError(f"width must be within 1..{hidden_dim}, got {width}")
    return width


def _first(layer: nn.Linear | nn.Conv2d, x: Tensor, width: int) -> Tensor:
    """Run the rows of a first layer that belong to the first hidden units."""
    return linear(x, layer.weight[:width], None if layer.bias is None else layer.bias[:width])


def _second(mlp: NestedMlp | NestedSwiGLU, hidden: Tensor) -> Tensor:
    """Run the columns of the second layer that belong to the hidden units that there are."""
    out: Tensor = mlp.drop2(linear(hidden, mlp.fc2.weight[:, : hidden.shape[-1]], mlp.fc2.bias))
    return out


class NestedBlock(Block):
    """A timm ViT block whose two halves run apart, the second one at any width."""

    def attend(
        self,
        x: Float[Tensor, "batch tokens dim"],
        log_sizes: Float[Tensor, "batch 1 1 tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Self-attention with its residual: the part that all submodels share."""
        mixed = self.attn(self.norm1(x), attn_mask=log_sizes)
        out: Tensor = x + self.drop_path1(self.ls1(mixed))
        return out

    def feed_forward(
        self, x: Float[Tensor, "batch tokens dim"], width: int | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Feed-forward network of `width` hidden units, with its residual.

        Raises:
            ValueError: If `width` is outside 1..hidden_dim.
        """
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x), width)))
        return out


def timm_arguments(config: MatViTConfig) -> dict[str, Any]:
    """Return the arguments that make timm's `VisionTransformer` the plain ViT of these settings."""
    arguments = {**config.to_dict(), "act_layer": ACTIVATIONS[config.act_layer]}
    if (eps := arguments.pop("norm_eps", None)) is not None:
        arguments["norm_layer"] = partial(LayerNorm, eps=eps)
    arguments["mlp_layer"] = SwiGLU if arguments.pop("gated", False) else Mlp
    return arguments


def nested_vit(config: MatViTConfig, drop_path_rate: float = 0.0) -> VisionTransformer:
    """Build a timm ViT whose feed-forward networks run at any width."""
    arguments = timm_arguments(config)
    arguments["mlp_layer"] = NestedSwiGLU if config.gated else NestedMlp
    return VisionTransformer(**arguments, drop_path_rate=drop_path_rate, block_fn=NestedBlock)


def run(
    weights: VisionTransformer,
    images: Float[Tensor, "batch 3 height width"],
    submodels: Sequence[Submodel],
    memory: Memory | None = None,
) -> list[Tokens]:
    """Run several submodels of one set of weights, computing what they share only once.

    Submodels whose first k blocks merge as many tokens and keep as many hidden units have the same
    hidden states up to there, and the attention of the block after them is the same too. So a state
    is known by the blocks that made it: it is the tokens after those and after the next one's
    attention. The attention of different states of as many tokens runs as one batch.

    Args:
        weights: What `nested_vit` made.
        images: Normalised images.
        submodels: What runs, one element of the outcome each.
        memory: States of earlier runs on the same images, to go on from; those of this run are
            added to it. None keeps no state longer than the next block needs it.

    Returns:
        Tokens after the last block, before the norm.
    """
    blocks = cast("list[NestedBlock]", list(weights.blocks))
    states: Memory = {} if memory is None else memory
    if () not in states:
        states[()] = Tokens(blocks[0].attend(embed_patches(weights, images)))
    prefix_tokens = weights.num_prefix_tokens
    patches = states[()].x.shape[1] - prefix_tokens
    wanted = [submodel.blocks(patches) for submodel in submodels]
    for depth, block in enumerate(blocks, start=1):
        new: Memory = {}
        for made_by in dict.fromkeys(each[:depth] for each in wanted):
            if made_by not in states:
                *before, (merged, width) = made_by
                x, sizes = merge(states[tuple(before)], merged, prefix_tokens)
                new[made_by] = Tokens(block.feed_forward(x, width), sizes)
        if depth < len(blocks):
            new = _attend_together(blocks[depth], new)
        if memory is None:
            states = new
        else:
            states.update(new)
    return [states[each] for each in wanted]


def embed_patches(
    weights: VisionTransformer, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch tokens dim"]:
    """Run everything before the first block: patches, positions, prefix tokens."""
    patches = weights.patch_drop(weights._pos_embed(weights.patch_embed(images)))
    tokens: Tensor = weights.norm_pre(patches)
    return tokens


def pool(
    weights: VisionTransformer, outcomes: Sequence[Tokens]
) -> Float[Tensor, "submodels batch dim"]:
    """Reduce what `run` returned to one vector per image, not normalised."""
    pooled: dict[int, Tensor] = {}
    for together in _of_one_length(dict(enumerate(outcomes))).values():
        joined, prefix = _join([outcomes[row] for row in together]), weights.num_prefix_tokens
        x, sizes = weights.norm(joined.x), joined.sizes
        if joined.log_sizes is not None and weights.global_pool == "map":
            vectors = weights.attn_pool(x[:, prefix:], attn_mask=joined.log_sizes[..., prefix:])
        else:
            if sizes is not None and weights.global_pool == "avg":
                counts = sizes / sizes[:, prefix:].mean(dim=1, keepdim=True)
                x = x * counts[:, :, None]  # so that the mean over tokens is one over patches
            vectors = weights.forward_head(x, pre_logits=True)
        pooled.update(zip(together, vectors.chunk(len(together)), strict=True))
    return torch.stack([pooled[row] for row in range(len(outcomes))])


def _attend_together(block: NestedBlock, states: Memory) -> Memory:
    """Run the attention of a block on several states; those of one length are one batch."""
    attended: Memory = {}
    for together in _of_one_length(states).values():
        joined = _join([states[key] for key in together])
        x = block.attend(joined.x, joined.log_sizes)
        for key, part in zip(together, x.chunk(len(together)), strict=True):
            attended[key] = Tokens(part, states[key].sizes)
    return attended


def _of_one_length(states: Mapping[Key, Tokens]) -> dict[int, list[Key]]:
    """Group states by their number of tokens; only those that merged none have no sizes."""
    groups: dict[int, list[Key]] = defaultdict(list)
    for key, tokens in states.items():
        groups[tokens.x.shape[1]].append(key)
    return groups


def _join(states: Sequence[Tokens]) -> Tokens:
    """Join the batches of states of one length."""
    sizes = [each.sizes for each in states if each.sizes is not None]
    return Tokens(torch.cat([each.x for each in states]), torch.cat(sizes) if sizes else None)
