"""Which parameters are updated how."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_NOT_DECAYED = ("_embed", "_token")


def build_optimizers(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else.

    In one short trial (docs/LOG.md) Muon brought the training loss lower than AdamW alone did in
    as many steps. Its updates are scaled to the size of AdamW's, so both follow one
    learning rate. Biases, norms and embeddings are not decayed.

    Args:
        model: A model whose blocks are named `blocks.0`, `blocks.1` and so on.
        learning_rate: For what comes after the blocks.
        weight_decay: For the parameters that are decayed.
        layer_decay: The learning rate of each layer, as a share of the next one's.

    Returns:
        Optimisers whose parameter groups name their share of the learning rate, `lr_scale`.

    References:
        Muon is Scalable for LLM Training, section 2.2. https://arxiv.org/abs/2502.16982
        Layer-wise decay: ELECTRA, appendix A. https://arxiv.org/abs/2003.10555
    """
    groups: dict[tuple[str, float], list[Tensor]] = {}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    layers = 1 + max((_layer(name, 0) for name, _ in named), default=0)
    for name, parameter in named:
        scale = layer_decay ** (layers - _layer(name, layers))
        groups.setdefault((_kind(name, parameter), scale), []).append(parameter)

    def chosen(kind: str, decay: float) -> list[dict[str, Any]]:
        return [
            {
                "params": parameters,
                "weight_decay": decay,
                "lr": learning_rate * scale,
                "lr_scale": scale,
            }
            for (its_kind, scale), parameters in groups.items()
            if its_kind == kind
        ]

    return [
        torch.optim.Muon(chosen("block", weight_decay), adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*chosen("decayed", weight_decay), *chosen("plain", 0.0)], fused=True),
    ]


def _kind(name: str, parameter: Tensor) -> str:
    if "blocks." in name and parameter.ndim == 2:
        return "block"
    return "decayed" if parameter.ndim >= 2 and not name.endswith(_NOT_DECAYED) else "plain"


def _layer(name: str, layers: int) -> int:
    """Depth of a parameter: 0 before the first block, 1 for it, `layers` after the last one."""
    if match := re.search(r"\bblocks\.([0-9]+)\.", name):
        return int(match[1]) + 1
    return 0 if re.search(r"patch_embed|pos_embed|_token|norm_pre", name) else layers
