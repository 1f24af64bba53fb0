"""What an encoder is known by: 16 hex digits of its architecture and weights.

An index stores the fingerprint of its encoder and refuses any other; a submodel extracted from a
model keeps its parent's, since it answers the same index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from matvit.config import MatViTConfig


def fingerprint_of(config: MatViTConfig, tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that change with the architecture or with any weight of the encoder.

    The classification head is left out: it takes no part in embedding.

    Args:
        config: Architecture.
        tensors: Weights under timm's names; compared as float32.
    """
    shape = {key: value for key, value in config.to_dict().items() if key != "num_classes"}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for key, tensor in sorted(without_head(tensors).items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"\n{key} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def without_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights but for those of the classification head."""
    return {key: value for key, value in tensors.items() if not key.startswith("head.")}


def weights_version(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Something that changes when a weight is replaced or updated in place, found without hashing.

    Torch counts the in-place updates of every tensor; tensors made in inference mode are not
    counted, and cannot be trained either.
    """
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in module.parameters())
