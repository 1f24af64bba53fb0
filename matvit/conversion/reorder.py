"""Hidden units in order of importance, so that the first ones are worth keeping.

The hidden units of a feed-forward network can stand in any order: permuting them changes nothing
at full size. A submodel keeps the first ones, and in an encoder that was not trained as a MatViT
those are as good as any. Here they are sorted first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float64, UInt8
from numpy import ndarray
from timm.layers.layer_scale import LayerScale
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from matvit.model import AnchoredMatViT, MatViT
from matvit.nested import NestedBlock, NestedMlp
from matvit.torch_runtime import batches


def reorder(
    model: MatViT, pixels: UInt8[ndarray, "images height width 3"], *, batch_size: int = 32
) -> MatViT:
    """Return a copy whose hidden units are sorted by `output_energy`, the largest first.

    Of equals, the one that came first stays first. Vectors at full size change by rounding only.

    Args:
        model: An encoder with one set of weights.
        pixels: Images like those that it will see, as `Preprocess.pixels` makes them.
        batch_size: Images per forward pass.

    Raises:
        ValueError: If there are no images, or the model has an anchor.
    """
    energies = output_energy(model, pixels, batch_size=batch_size)
    sorted_model = copy.deepcopy(model)
    with torch.no_grad():
        for block, energy in zip(sorted_model.backbone.blocks, energies, strict=True):
            order = torch.sort(energy, descending=True, stable=True).indices
            mlp = _feed_forward(block)
            for parameter in mlp.fc1.parameters():  # weight and bias
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
    if len(pixels) == 0:
        raise ValueError("the importance of hidden units is measured on images; got none")
    if isinstance(model, AnchoredMatViT):
        raise ValueError(f"{model.name} has an anchor; sort the encoder it was made from instead")
    blocks = list(model.backbone.blocks)
    sums = [torch.zeros(model.config.hidden_dim, dtype=torch.float64) for _ in blocks]
    handles = [_watch(block, total) for block, total in zip(blocks, sums, strict=True)]
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


def _watch(block: nn.Module, total: Tensor) -> RemovableHandle:
    """Add up the squares of a block's hidden activations in `total` whenever it runs."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...], hidden: Tensor) -> None:  # noqa: ARG001
        total.add_(hidden.double().square().flatten(0, -2).sum(dim=0).cpu())

    hook: Callable[..., None] = add
    return _feed_forward(block).act.register_forward_hook(hook)


def _column_energy(block: nn.Module) -> Float64[Tensor, "hidden"]:
    """Squared length of each hidden unit's column in the output layer."""
    assert isinstance(block, NestedBlock)
    columns = _feed_forward(block).fc2.weight.detach().double()
    if isinstance(block.ls2, LayerScale):
        columns = columns * block.ls2.gamma.detach().double().unsqueeze(1)
    return columns.square().sum(dim=0)


def _feed_forward(block: nn.Module) -> NestedMlp:
    assert isinstance(block, NestedBlock)
    assert isinstance(block.mlp, NestedMlp)
    return block.mlp
