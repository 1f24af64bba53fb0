"""Embedding what goes into an index: every row a unit vector, or an error that names the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from indexing.corpus import ImageRecord
from matvit.embed import Encoder, embed

_NORM_TOLERANCE = 1e-3


def embed_records(
    encoder: Encoder,
    pixels: UInt8[ndarray, "images height width 3"],
    records: Sequence[ImageRecord],
) -> Float32[ndarray, "images dim"]:
    """Embed one batch at full size and make sure that every row can be searched for.

    Args:
        encoder: A whole encoder.
        pixels: Decoded images.
        records: What is known about each.

    Raises:
        ValueError: If the encoder did not return one unit vector per image.
    """
    if not records:
        return np.empty((0, encoder.config.embed_dim), dtype=np.float32)
    vectors = embed(encoder, pixels, batch_size=len(records))
    expected = (len(records), encoder.config.embed_dim)
    if vectors.shape != expected:
        raise ValueError(f"encoder {encoder.name} returned {vectors.shape}, wanted {expected}")
    norms = np.linalg.norm(vectors, axis=1)
    for row in np.flatnonzero(~(np.abs(norms - 1) < _NORM_TOLERANCE)):  # NaN is caught too
        raise ValueError(
            f"encoder {encoder.name} has no direction for {records[int(row)].path}: its "
            f"embedding has length {norms[row]}; check the weights of the encoder"
        )
    return vectors
