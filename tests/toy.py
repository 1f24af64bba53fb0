"""An encoder that costs nothing, and photos for it: what tests of storage need of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from matvit.config import MatViTConfig
from matvit.encoder import Runtime
from matvit.preprocess import Preprocess
from matvit.submodel import Granularity, Submodel

SIDE, DIM = 4, 8
MIX = np.random.default_rng(7).standard_normal((3 * SIDE * SIDE, DIM)).astype(np.float32)


class ToyEncoder:
    """Embeds an image by one fixed random projection of its pixels."""

    name = "toy"
    fingerprint = weights_fingerprint = "70" * 8
    config = MatViTConfig(img_size=SIDE, patch_size=SIDE, embed_dim=DIM, depth=1, num_heads=1)
    preprocess = Preprocess(img_size=SIDE)
    is_whole = True
    runtime = Runtime("toy", "1", "cpu", "cpu")

    def submodel(self, spec=None):
        return Submodel.uniform(Granularity.XL, depth=1, hidden_dim=self.config.hidden_dim)

    def weights_of(self, submodel):
        return "toy"

    def number_format(self, precision="auto", images=None):
        return "float32"

    def embed_pixels(self, pixels, submodels, number_format, memory=None):
        images = (pixels / np.float32(255) - self.preprocess.mean) / self.preprocess.std
        flat = images.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        # Sums, not matrix products, whose last bits depend on the batch.
        vectors = (flat[:, :, None] * MIX).sum(axis=1)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[None]


def photo(path: Path, seed: int) -> Path:
    """Write a small picture, another one for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def expected_embedding(path: Path) -> np.ndarray:
    """What the toy encoder makes of a picture, computed without it."""
    preprocess = ToyEncoder.preprocess
    pixels = np.asarray(Image.open(path), dtype=np.float64)
    scaled = (pixels / 255 - preprocess.mean) / preprocess.std
    vector = scaled.transpose(2, 0, 1).reshape(-1) @ MIX.astype(np.float64)
    return vector / np.linalg.norm(vector)
