"""How well each trained size classifies: a quick check during training."""

from __future__ import annotations

import numpy as np
import torch

from matvit.embedding import batches
from matvit.mixes import trained_sizes
from matvit.model import MatViT
from matvit.training.data import LabelledPixels


def top1_per_size(
    model: MatViT, data: LabelledPixels, *, batch_size: int = 256
) -> dict[str, float]:
    """Share of images whose most likely class is the right one, for S, M, L and XL."""
    sizes = trained_sizes(model.config)
    right = np.zeros(len(sizes), dtype=np.int64)
    with torch.inference_mode():
        for rows, images in batches(model, data.pixels, batch_size):
            scores = model.classify(model.vectors(images, sizes))
            right += (scores.argmax(dim=-1).cpu().numpy() == data.labels[rows]).sum(axis=1)
    return {str(size): float(count) / len(data) for size, count in zip(sizes, right, strict=True)}
