"""Hidden units in order of importance, so that the first ones are worth keeping.

The hidden units of a feed-forward network can stand in any order: permuting them changes nothing
at full size. A submodel keeps the first ones, and in an encoder that was not trained as a MatViT
those are as good as any. Here they are sorted first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float64, UInt8
from numpy import ndarray
from timm.layers.layer_scale import LayerScale
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from matvit.model import AnchoredMatViT, MatViT
from matvit.nested import NestedBlock, NestedMlp, NestedSwiGLU
from matvit.torch_runtime import batches

Ranking = Literal["energy", "first-order"]

_DIRECTIONS = 4
"""Random directions of the vector per image along which `first_order` looks."""


def reorder(
    model: MatViT,
    pixels: UInt8[ndarray, "images height width 3"],
    *,
    by: Ranking = "energy",
    batch_size: int = 32,
) -> MatViT:
    """Return a copy whose hidden units are sorted by importance, the largest first.

    Of equals, the one that came first stays first. Vectors at full size change by rounding only.

    Args:
        model: An encoder with one set of weights.
        pixels: Images like those that it will see, as `Preprocess.pixels` makes them.
        by: What is important: `"energy"` is `output_energy`, `"first-order"` is `first_order`.
        batch_size: Images per forward pass.

    Raises:
        ValueError: If there are no images, the model has an anchor, or the ranking is unknown.
    """
    if by not in ("energy", "first-order"):
        raise ValueError(f"rank hidden units by energy or first-order, got {by!r}")
    measure = output_energy if by == "energy" else first_order
    found = measure(model, pixels, batch_size=batch_size)
    sorted_model = copy.deepcopy(model)
    with torch.no_grad():
        for block, importance in zip(sorted_model.backbone.blocks, found, strict=True):
            order = torch.sort(importance, descending=True, stable=True).indices
            mlp = feed_forward_of(block)
            for layer in first_layers(mlp):
                for parameter in layer.parameters():  # weight and bias
                    parameter.copy_(parameter[order])
            mlp.fc2.weight.copy_(mlp.fc2.weight[:, order])
    return sorted_model


def output_energy(
    model: MatViT, pixels: UInt8[ndarray, "images height width 3"], *, batch_size: int = 32
) -> list[Float64[Tensor, "hidden"]]:
    """How much each hidden unit adds to the residual stream, per block, at full size.

    The mean square of its activation over all tokens, times the squared length of its column in
    the output layer (layer scale included): the mean square of what it contributes. Correlation
    between units is not looked at.

    Raises:
        ValueError: If there are no images, or the model has an anchor.
    """
    refuse_unfit(model, pixels)
    blocks = list(model.backbone.blocks)
    sums = [torch.zeros(model.config.hidden_dim, dtype=torch.float64) for _ in blocks]

    def add(place: int, hidden: Tensor) -> None:
        sums[place].add_(hidden.double().square().flatten(0, -2).sum(dim=0).cpu())

    handles = [_watch(block, place, add) for place, block in enumerate(blocks)]
    try:
        with torch.inference_mode():
            for _, images in batches(model, pixels, batch_size):
                model(images.to(next(model.parameters()).dtype))
    finally:
        for handle in handles:
            handle.remove()
    tokens = len(pixels) * model.config.tokens()
    return [
        total / tokens * _column_energy(block).cpu()
        for block, total in zip(blocks, sums, strict=True)
    ]


def first_order(
    model: MatViT, pixels: UInt8[ndarray, "images height width 3"], *, batch_size: int = 32
) -> list[Float64[Tensor, "hidden"]]:
    """How far the vector of an image moves, to first order, if a hidden unit falls silent.

    The mean square of the unit's activation times the derivative of the unit vector by it, summed
    over the tokens of an image. The squared length of that is had from random directions: its
    expectation is the mean square of the projection. Unlike `output_energy` this knows which
    tokens and which directions the blocks behind it listen to.

    Raises:
        ValueError: If there are no images, or the model has an anchor.
    """
    refuse_unfit(model, pixels)
    blocks = list(model.backbone.blocks)
    sums = [torch.zeros(model.config.hidden_dim, dtype=torch.float64) for _ in blocks]
    seen: dict[int, Tensor] = {}
    handles = [_watch(block, place, seen.__setitem__) for place, block in enumerate(blocks)]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.enable_grad():
            for _, images in batches(model, pixels, batch_size):
                vectors = model(images.to(next(model.parameters()).dtype))
                hidden = [seen[place] for place in range(len(blocks))]
                for last in range(_DIRECTIONS - 1, -1, -1):
                    direction = torch.randn(vectors.shape, generator=generator).to(vectors)
                    slopes = torch.autograd.grad(vectors, hidden, direction, retain_graph=last > 0)
                    for total, slope, units in zip(sums, slopes, hidden, strict=True):
                        moved = (slope * units).detach().sum(dim=1).double()
                        total.add_(moved.square().sum(dim=0).cpu())
    finally:
        for handle in handles:
            handle.remove()
    return [total / (len(pixels) * _DIRECTIONS) for total in sums]


def feed_forward_of(block: nn.Module) -> NestedMlp | NestedSwiGLU:
    """The feed-forward network of a block."""
    assert isinstance(block, NestedBlock)
    assert isinstance(block.mlp, (NestedMlp, NestedSwiGLU))
    return block.mlp


def first_layers(mlp: NestedMlp | NestedSwiGLU) -> list[nn.Module]:
    """The layers whose rows are hidden units: one, or two of a gated network."""
    return [mlp.fc1] if isinstance(mlp, NestedMlp) else [mlp.fc1_g, mlp.fc1_x]


def refuse_unfit(model: MatViT, pixels: UInt8[ndarray, "images height width 3"]) -> None:
    """Refuse an encoder of two sets of weights, and to measure anything on no image.

    Raises:
        ValueError: If there are no images, or the model has an anchor.
    """
    if len(pixels) == 0:
        raise ValueError("the importance of hidden units is measured on images; got none")
    if isinstance(model, AnchoredMatViT):
        raise ValueError(f"{model.name} has an anchor; sort the encoder it was made from instead")


def _watch(block: nn.Module, place: int, look: Callable[[int, Tensor], None]) -> RemovableHandle:
    """Show a block's hidden activations to somebody whenever it runs."""

    def show(module: nn.Module, inputs: tuple[Tensor, ...], hidden: Tensor) -> None:  # noqa: ARG001
        look(place, hidden)

    hook: Callable[..., None] = show
    return feed_forward_of(block).drop1.register_forward_hook(hook)


def _column_energy(block: nn.Module) -> Float64[Tensor, "hidden"]:
    """Squared length of each hidden unit's column in the output layer."""
    assert isinstance(block, NestedBlock)
    columns = feed_forward_of(block).fc2.weight.detach().double()
    if isinstance(block.ls2, LayerScale):
        columns = columns * block.ls2.gamma.detach().double().unsqueeze(1)
    return columns.square().sum(dim=0)
