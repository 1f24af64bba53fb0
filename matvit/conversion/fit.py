"""The second matrix of every feed-forward network, fitted to the hidden units that are kept.

Cutting hidden units off loses what they contributed. Much of that can be had from the others: they
are correlated. So, block by block, the columns of the second matrix are chosen such that the tokens
after the block come as near to those of the full size as they can, at all trained sizes at once. It
is linear least squares: no steps, no learning rate, no labels.

One column serves every size that keeps its unit, so nesting stays; the sum of the errors of all
sizes has one minimum, in closed form. Each size sees its own tokens, as the blocks before have left
them, so that what went astray there is led back.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, UInt8
from numpy import ndarray
from timm.layers.layer_scale import LayerScale
from torch import Tensor

from matvit.conversion.reorder import feed_forward_of, refuse_unfit
from matvit.mixes import trained_sizes
from matvit.model import MatViT
from matvit.nested import NestedBlock, embed_patches
from matvit.torch_runtime import batches

_RIDGE = 1e-3
"""Pull towards the weights as they were, in units of the mean energy of a hidden unit."""

_TOKENS_PER_UNIT = 32
"""Equations for each unknown; more images cost more and change little."""

_MOST_VALUES = 1 << 28
"""Values of all tokens at all sizes that are in memory: 1 GiB; beyond that, fewer images."""

_TINY = 1e-12


def fit(
    model: MatViT,
    pixels: UInt8[ndarray, "images height width 3"],
    *,
    batch_size: int = 32,
    ridge: float = _RIDGE,
) -> MatViT:
    """Return a copy whose second matrices are fitted to the hidden units that each size keeps.

    The full size changes too: serve that from the original, see `AnchoredMatViT`.

    Args:
        model: An encoder with one set of weights, its hidden units sorted.
        pixels: Images like those that it will see, as `Preprocess.pixels` makes them.
        batch_size: Images per forward pass.
        ridge: How much the weights are held where they were.

    Raises:
        ValueError: If there are no images, or the model has an anchor.
    """
    refuse_unfit(model, pixels)
    config = model.config
    widths = [size.widths[0] for size in trained_sizes(config)]
    room = _MOST_VALUES // ((len(widths) + 1) * config.tokens() * config.embed_dim)
    most = min(room, _TOKENS_PER_UNIT * config.hidden_dim // config.tokens())
    pixels = pixels[:: -(-len(pixels) // max(most, batch_size))]
    fitted = copy.deepcopy(model)
    with torch.inference_mode():
        states = [
            _attended(model.backbone.blocks[0], embed_patches(model.backbone, images), len(widths))
            for _, images in batches(model, pixels, batch_size)
        ]
    blocks = list(model.backbone.blocks)
    for depth, block in enumerate(blocks):
        original, target = _nested(block), _nested(fitted.backbone.blocks[depth])
        with torch.inference_mode():
            solution = _solve(original, states, widths, ridge)
        _take(target, solution)
        with torch.inference_mode():
            states = [_after(original, target, each, widths) for each in states]
            if depth + 1 < len(blocks):
                following = _nested(blocks[depth + 1])
                states = [following.attend(each.flatten(0, 1)).view_as(each) for each in states]
    return fitted


def _attended(
    block: torch.nn.Module, tokens: Float[Tensor, "batch tokens dim"], sizes: int
) -> Float[Tensor, "streams batch tokens dim"]:
    """Tokens before the first feed-forward network: the full size's, and those of every size."""
    return _nested(block).attend(tokens).expand(1 + sizes, -1, -1, -1)


def _after(
    original: NestedBlock,
    fitted: NestedBlock,
    states: Float[Tensor, "streams batch tokens dim"],
    widths: Sequence[int],
) -> Float[Tensor, "streams batch tokens dim"]:
    """Tokens after a block: of the full size as it was, and of every size as it is now."""
    sizes = [fitted.feed_forward(x, width) for x, width in zip(states[1:], widths, strict=True)]
    return torch.stack([original.feed_forward(states[0]), *sizes])


def _solve(
    block: NestedBlock,
    states: Sequence[Float[Tensor, "streams batch tokens dim"]],
    widths: Sequence[int],
    ridge: float,
) -> Float64[Tensor, "hidden_and_one dim"]:
    """Columns of the second matrix, and its bias, by which all sizes together err least.

    The bias is the column of a unit that is always 1. Both are what is added to the tokens: layer
    scale is inside. With the units h of all tokens that size s keeps and what is wanted of them, t,

        (sum of h^T h over sizes + ridge) columns = sum of h^T t over sizes + ridge * columns before
    """
    before = _columns(block)
    count = len(before)
    gram = torch.zeros(count, count, dtype=torch.float64)
    wanted = torch.zeros(before.shape, dtype=torch.float64)
    for streams in states:
        full = block.feed_forward(streams[0])
        for x, width in zip(streams[1:], widths, strict=True):
            hidden = feed_forward_of(block).hidden(block.norm2(x), width).flatten(0, 1)
            ones = hidden.new_ones(len(hidden), 1)
            units = torch.cat([hidden, ones], dim=1)
            kept = torch.tensor([*range(width), count - 1])
            target = (full - x).flatten(0, 1)
            gram[kept[:, None], kept] += (units.T @ units).double().cpu()
            wanted[kept] += (units.T @ target).double().cpu()
    pull = ridge * gram.diagonal()[:-1].mean().clamp_min(_TINY)
    gram.diagonal().add_(pull)
    columns: Tensor = torch.linalg.solve(gram, wanted + pull * before)
    return columns


def _columns(block: NestedBlock, *, scaled: bool = True) -> Float64[Tensor, "hidden_and_one dim"]:
    """Columns of the second matrix and its bias, with the layer scale after them or without."""
    layer = feed_forward_of(block).fc2
    columns = torch.cat([layer.weight.T, _bias(block)[None]]).detach().double().cpu()
    return columns * _scale(block) if scaled else columns


def _take(block: NestedBlock, columns: Float64[Tensor, "hidden_and_one dim"]) -> None:
    """Give a block its columns; where layer scale lets nothing through they do not matter."""
    scale = _scale(block)
    passes = scale.abs() > _TINY
    before = _columns(block, scaled=False)
    found = torch.where(passes, columns / torch.where(passes, scale, 1.0), before)
    with torch.no_grad():
        feed_forward_of(block).fc2.weight.copy_(found[:-1].T)
        _bias(block).copy_(found[-1])


def _scale(block: NestedBlock) -> Float64[Tensor, " dim"]:
    """What layer scale multiplies each dimension by."""
    gamma = block.ls2.gamma if isinstance(block.ls2, LayerScale) else torch.ones_like(_bias(block))
    return gamma.detach().double().cpu()


def _bias(block: NestedBlock) -> Float[Tensor, " dim"]:
    bias = feed_forward_of(block).fc2.bias
    assert bias is not None
    return bias


def _nested(block: torch.nn.Module) -> NestedBlock:
    assert isinstance(block, NestedBlock)
    return block
