"""A joint training step against the naive way, which runs the full width once per size.

    python benchmarks/joint_step.py [--shape DIM DEPTH HEADS IMAGE PATCH]... [--batch N]

Ours: `MatViT.features` computes what the sizes share once, runs the attention of all sizes as
one batch and slices every feed-forward network. Naive: one full-width pass per size whose hidden
units beyond the size are multiplied by zero, as the public JAX code of MatFormer does; the sum of
their losses is differentiated in both. Same weights, same images, same precision; the gradients
of the two are compared before anything is timed. The two take turns, and each pair of
neighbouring steps gives one ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from provenance import provenance, write_result
from torch import Tensor
from torch.nn.functional import cross_entropy

from matvit import (
    MatViT,
    MatViTConfig,
    Submodel,
    count_macs,
    resolve_device,
    resolve_precision,
    trained_sizes,
)
from matvit.nested import NestedBlock
from matvit.training.losses import joint_cross_entropy
from matvit.training.trainer import use_trainable_attention

_SHAPES = [(256, 6, 4, 64, 8), (384, 12, 6, 64, 8), (384, 12, 6, 128, 16)]
_CLASSES = 200

Step = Callable[[MatViT, Tensor, Tensor, list[Submodel]], Tensor]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shape", type=int, nargs=5, action="append", metavar=("DIM", "DEPTH", "HEADS", "IMG", "P")
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", default="joint_step")
    given = parser.parse_args()
    shapes = given.shape or _SHAPES
    rows = [measure(*shape, given.batch, given.pairs, given.device) for shape in shapes]
    command = "python benchmarks/joint_step.py " + " ".join(sys.argv[1:])
    write_result(given.name, {**provenance(command.strip()), "rows": rows})


def measure(
    dim: int, depth: int, heads: int, img: int, patch: int, batch: int, pairs: int, device: str
) -> dict[str, Any]:
    """Time one shape of model."""
    torch.manual_seed(0)
    config = MatViTConfig(
        img_size=img, patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads,
        num_classes=_CLASSES,
    )  # fmt: skip
    model = MatViT(config).to(resolve_device(device)).train()
    use_trainable_attention(model)
    images = torch.randn(batch, 3, img, img, device=model.device)
    labels = torch.randint(_CLASSES, (batch,), device=model.device)
    sizes = trained_sizes(config)
    difference = largest_difference(model, images[:8], labels[:8], sizes)
    dtype = resolve_precision(model.device)
    ours, naive, ratios = [], [], []
    for pair in range(-2, pairs):  # the first two warm up
        order = (joint_step, naive_step) if pair % 2 else (naive_step, joint_step)
        seconds = {step: timed(step, model, images, labels, sizes, dtype) for step in order}
        if pair >= 0:
            ours.append(seconds[joint_step])
            naive.append(seconds[naive_step])
            ratios.append(seconds[joint_step] / seconds[naive_step])
    low, median, high = statistics.quantiles(ratios, n=4)
    row = {
        "shape": {"dim": dim, "depth": depth, "heads": heads, "img": img, "patch": patch},
        "tokens": config.tokens(),
        "batch": batch,
        "pairs": pairs,
        "precision": str(dtype).removeprefix("torch."),
        "joint_ms": round(1000 * statistics.median(ours), 2),
        "naive_ms": round(1000 * statistics.median(naive), 2),
        "ratio": round(median, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
        "ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "ratio_of_macs": round(macs_ratio(config, sizes), 4),
        "largest_gradient_difference": difference,
    }
    print(row, file=sys.stderr)
    return row


def joint_step(model: MatViT, images: Tensor, labels: Tensor, sizes: list[Submodel]) -> Tensor:
    """Return the mean loss of all sizes our way."""
    targets = torch.nn.functional.one_hot(labels, _CLASSES).float()
    loss, _ = joint_cross_entropy(model, images, targets, sizes, [1.0] * len(sizes))
    return loss


def naive_step(model: MatViT, images: Tensor, labels: Tensor, sizes: list[Submodel]) -> Tensor:
    """Return the mean loss of all sizes from one masked pass each."""
    losses = [cross_entropy(masked_logits(model, images, size).float(), labels) for size in sizes]
    return torch.stack(losses).mean()


def masked_logits(model: MatViT, images: Tensor, size: Submodel) -> Tensor:
    """Class scores of one size, computed at full width with the rest multiplied by zero."""
    backbone = model.backbone
    tokens = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images)))
    for block, width in zip(backbone.blocks, size.widths, strict=True):
        assert isinstance(block, NestedBlock)
        tokens = tokens + block.attn(block.norm1(tokens))
        hidden = block.mlp.act(block.mlp.fc1(block.norm2(tokens)))
        mask = (torch.arange(size.hidden_dim, device=hidden.device) < width).to(hidden.dtype)
        tokens = tokens + block.mlp.fc2(hidden * mask)
    logits: Tensor = backbone.forward_head(backbone.norm(tokens))
    return logits


def timed(
    step: Step, model: MatViT, images: Tensor, labels: Tensor, sizes: list[Submodel],
    dtype: torch.dtype,
) -> float:  # fmt: skip
    """Seconds of a forward and backward pass."""
    model.zero_grad(set_to_none=True)
    wait(model.device)
    start = perf_counter()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = step(model, images, labels, sizes)
    torch.autograd.backward(loss)
    wait(model.device)
    return perf_counter() - start


def wait(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def largest_difference(
    model: MatViT, images: Tensor, labels: Tensor, sizes: list[Submodel]
) -> float:
    """Largest difference of a gradient between the two ways, in float64, relative to its size.

    Raises:
        ValueError: If they differ by more than rounding.
    """
    model.double()
    gradients = []
    for step in (joint_step, naive_step):
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(step(model, images.double(), labels, sizes))
        gradients.append([parameter.grad for parameter in model.parameters()])
    model.float()
    worst = max(
        float((ours - naive).abs().max() / naive.abs().max())
        for ours, naive in zip(*gradients, strict=True)
    )
    # Logits pass through float32 on both ways.
    if worst > 1e-5:
        raise ValueError(f"the gradients of the two ways differ by {worst:.1e}")
    return worst


def macs_ratio(config: MatViTConfig, sizes: list[Submodel]) -> float:
    """Multiplications of ours by those of the naive way."""
    full = count_macs(config, sizes[-1])
    return (sum(count_macs(config, size) for size in sizes) - shared_macs(config)) / (4 * full)


def shared_macs(config: MatViTConfig) -> int:
    """What three of the four sizes need not compute again: the stem and the first attention."""
    tokens, dim = config.tokens(), config.embed_dim
    patches = tokens - config.prefix_tokens
    return 3 * (
        patches * 3 * config.patch_size**2 * dim + 4 * tokens * dim**2 + 2 * tokens**2 * dim
    )


if __name__ == "__main__":
    main()
