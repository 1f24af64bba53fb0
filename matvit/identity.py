"""What an encoder is known by: 16 hex digits of its architecture and weights.

An index stores the fingerprint of its encoder and refuses any other; a submodel extracted from a
model keeps its parent's, since it answers the same index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy import ndarray

from matvit.config import MatViTConfig

_Tensor = TypeVar("_Tensor")


def fingerprint_of(config: MatViTConfig, tensors: Mapping[str, ndarray]) -> str:
    """16 hex digits that change with the architecture or with any weight of the encoder.

    The classification head is left out: it takes no part in embedding.

    Args:
        config: Architecture.
        tensors: Weights under timm's names; compared as float32.
    """
    shape = {key: value for key, value in config.to_dict().items() if key != "num_classes"}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for key, tensor in sorted(without_head(tensors).items()):
        values = np.asarray(tensor, dtype=np.float32, order="C")
        digest.update(f"\n{key} {values.shape}\n".encode())
        digest.update(values.reshape(-1).data)
    return digest.hexdigest()[:16]


def without_head(tensors: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
    """Return weights but for those of the classification head."""
    return {key: value for key, value in tensors.items() if not key.startswith("head.")}
