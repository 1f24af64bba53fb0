from __future__ import annotations

import numpy as np
import torch

from matvit.config import MatViTConfig
from matvit.embedding import to_input
from matvit.model import MatViT
from matvit.training.data import LabelledPixels
from matvit.training.run import top1_per_size


def test_top1_is_the_share_of_right_answers_of_each_size():
    torch.manual_seed(0)
    config = MatViTConfig(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    model = MatViT(config)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, 10)
    found = top1_per_size(model, LabelledPixels(pixels, labels, ["a", "b", "c"], 0), batch_size=4)
    for size, share in found.items():
        with torch.no_grad():
            vectors = model.vectors(to_input(pixels, model), [model.submodel(size)])
            scores = model.classify(vectors)[0]
        assert share == (scores.argmax(dim=1).numpy() == labels).mean()
    assert list(found) == ["S", "M", "L", "XL"]
