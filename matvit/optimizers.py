"""Which parameters are updated how."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer


def build_optimizers(
    model: nn.Module, *, learning_rate: float, weight_decay: float
) -> list[Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else.

    In one short trial (docs/LOG.md) Muon brought the training loss lower than AdamW alone did in
    as many steps. Its updates are scaled to the size of AdamW's, so both follow one
    learning rate. Biases, norms and embeddings are not decayed.

    References:
        Muon is Scalable for LLM Training, section 2.2. https://arxiv.org/abs/2502.16982
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    blocks = [p for name, p in named if "blocks." in name and p.ndim == 2]
    in_blocks = {id(p) for p in blocks}
    rest = [(name, p) for name, p in named if id(p) not in in_blocks]
    decayed = [p for name, p in rest if p.ndim >= 2 and not name.endswith(("_embed", "_token"))]
    is_decayed = {id(p) for p in decayed}
    plain = [p for _, p in rest if id(p) not in is_decayed]
    return [
        torch.optim.Muon(
            blocks,
            lr=learning_rate,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=learning_rate,
            fused=True,
        ),
    ]
