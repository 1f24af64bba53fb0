"""A small index of photos in classes and an untrained encoder for it, to tune."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from indexing import Corpus, ImageIndex
from matvit.config import MatViTConfig
from matvit.model import MatViT
from matvit.preprocess import Preprocess
from retrieval import Retriever

CONFIG = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2)


def colourful(path: Path, seed: int) -> Path:
    """Write a picture of a colour with noise: colours are classes that an encoder tells apart."""
    rng = np.random.default_rng(seed)
    colour = np.eye(3)[seed % 3] * 120 + 60
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (colour + rng.normal(0, 35, (20, 20, 3))).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def picture(seed: int = 0) -> Image.Image:
    """Make a picture of noise to ask with."""
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def photos(root: Path, count: int, first: int = 0) -> Corpus:
    """Make a folder of `count` pictures in three classes."""
    for seed in range(first, first + count):
        colourful(root / f"class{seed % 3}" / f"{seed:04}.png", seed)
    return Corpus.from_folder(root)


def small_encoder(seed: int = 0) -> MatViT:
    """Make an untrained encoder of three blocks."""
    torch.manual_seed(seed)
    return MatViT(CONFIG, Preprocess(img_size=16), "small")


def small_retriever(folder: Path, images: int = 90, *, labels: bool = True) -> Retriever:
    """Index pictures with an untrained encoder."""
    corpus = photos(folder / "photos", images)
    model = small_encoder()
    corpus = corpus if labels else corpus.without_labels()
    return Retriever(model, ImageIndex.build(model, corpus, folder / "index"))
