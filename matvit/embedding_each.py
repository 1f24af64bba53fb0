"""Embedding the same images with many submodels, computing only once what they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy import ndarray
from torch.nn.functional import normalize

from matvit.embedding import Precision, precision_of, resolve_precision, to_input, unit_vectors
from matvit.model import MatViT
from matvit.submodel import Submodel

_TOGETHER = 16  # more share more, but need memory for as many hidden states


def embed_each(
    model: MatViT,
    pixels: UInt8[ndarray, "images height width 3"],
    submodels: Sequence[Submodel],
    *,
    batch_size: int = 64,
    precision: Precision = "auto",
) -> Iterator[tuple[Submodel, Float32[ndarray, "images dim"]]]:
    """Embed images with each of some submodels; those with a common prefix share its cost.

    The vectors agree with those of `embed` to the rounding of the arithmetic.

    Args:
        model: A whole encoder.
        pixels: Images as `Preprocess.pixels` makes them.
        submodels: What runs.
        batch_size: Images at a time.
        precision: As for `embed`.

    Yields:
        Each distinct submodel and its unit vectors, those of common prefixes after each other.

    Raises:
        ValueError: If a submodel is not one of the encoder's, it is in training mode, or an
            embedding is not finite.
    """
    if model.training:
        raise ValueError(f"encoder {model.name} is in training mode; call eval() first")
    distinct = sorted({model.submodel(each) for each in submodels}, key=lambda each: each.widths)
    for start in range(0, len(distinct), _TOGETHER):
        group = distinct[start : start + _TOGETHER]
        yield from zip(
            group, _embed_group(model, pixels, group, batch_size, precision), strict=True
        )


def _embed_group(
    model: MatViT,
    pixels: UInt8[ndarray, "images height width 3"],
    group: Sequence[Submodel],
    batch_size: int,
    precision: Precision,
) -> Float32[ndarray, "submodels images dim"]:
    vectors = np.empty((len(group), len(pixels), model.config.embed_dim), dtype=np.float32)
    dtype = resolve_precision(model.device, precision, len(pixels))
    with torch.inference_mode(), precision_of(model.device, dtype):
        for start in range(0, len(pixels), batch_size):
            images = to_input(pixels[start : start + batch_size], model)
            pooled = model.pool(model.features(images, group), group)
            part = normalize(pooled, dim=-1).float().cpu().numpy()
            vectors[:, start : start + batch_size] = part
    return np.stack([unit_vectors(rows, model.name) for rows in vectors])
