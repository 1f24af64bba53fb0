"""Embedding what goes into an index: every row a unit vector, or an error that names the image."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt8
from numpy import ndarray

from matvit import Encoder, embed

_NORM_TOLERANCE = 1e-3


def embed_batch(
    encoder: Encoder,
    pixels: UInt8[ndarray, "images height width 3"],
    names: pa.Array,
) -> Float32[ndarray, "images dim"]:
    """Embed one batch at full size and make sure that every row can be searched for.

    Args:
        encoder: A whole encoder.
        pixels: Decoded images.
        names: What to call each.

    Raises:
        ValueError: If the encoder did not return one unit vector per image.
    """
    if not len(pixels):
        return np.empty((0, encoder.config.embed_dim), dtype=np.float32)
    vectors = embed(encoder, pixels, batch_size=len(pixels))
    expected = (len(pixels), encoder.config.embed_dim)
    if vectors.shape != expected:
        raise ValueError(f"encoder {encoder.name} returned {vectors.shape}, wanted {expected}")
    norms = np.linalg.norm(vectors, axis=1)
    for row in np.flatnonzero(~(np.abs(norms - 1) < _NORM_TOLERANCE)):  # NaN is caught too
        raise ValueError(
            f"encoder {encoder.name} has no direction for {names[row]}: its "
            f"embedding has length {norms[row]}; check the weights of the encoder"
        )
    return vectors
