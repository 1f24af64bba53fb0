"""Pixels to embeddings: what corpus, query, evaluation and tuning use.

One submodel (`embed`), many that share what they can (`embed_each`), or one after the other, each
going on from where an earlier one agreed with it (`ContinuedEmbedding`). What computes is the
encoder's own affair; see `matvit.encoder`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from numpy import ndarray

from matvit.cost import count_macs, count_shared_macs
from matvit.encoder import Encoder, Memory, Precision
from matvit.submodel import Granularity, Submodel

_TOGETHER = 16  # submodels; more share more, but need memory for as many hidden states


def embed(
    encoder: Encoder,
    pixels: UInt8[ndarray, "images height width 3"],
    submodel: Submodel | Granularity | str | None = None,
    *,
    batch_size: int = 256,
    precision: Precision = "auto",
) -> Float[ndarray, "images dim"]:
    """Embed images with one submodel, on the device where the encoder lives.

    Args:
        encoder: The encoder.
        pixels: Images as `Preprocess.pixels` makes them.
        submodel: What runs; None is the encoder's full size.
        batch_size: Images per forward pass.
        precision: `"auto"` computes in bfloat16 where torch gains from it and in float32
            elsewhere: on a CPU without the instructions, and there for a few images, where
            casting the weights costs more than it saves. The two agree to a cosine of at least
            0.999. ONNX Runtime always computes in float32.

    Returns:
        float32 embeddings of length one, in the order of `pixels`.

    Raises:
        ValueError: If the submodel is not one of the encoder's, the pixels are not uint8, the
            encoder is in training mode (stochastic depth would make its vectors random), or an
            embedding is not finite.
    """
    chosen = encoder.submodel(submodel)
    (vectors,) = _in_batches(encoder, pixels, [chosen], batch_size, precision)
    return _unit_vectors(vectors, encoder.name)


def embed_each(
    encoder: Encoder,
    pixels: UInt8[ndarray, "images height width 3"],
    submodels: Sequence[Submodel],
    *,
    batch_size: int = 64,
    precision: Precision = "auto",
) -> Iterator[tuple[Submodel, Float32[ndarray, "images dim"]]]:
    """Embed images with each of some submodels; those with a common prefix share its cost.

    The vectors agree with those of `embed` to the rounding of the arithmetic.

    Args:
        encoder: A whole encoder.
        pixels: Images as `Preprocess.pixels` makes them.
        submodels: What runs.
        batch_size: Images at a time.
        precision: As for `embed`.

    Yields:
        Each distinct submodel and its unit vectors, those of common prefixes after each other.

    Raises:
        ValueError: As `embed` does.
    """
    distinct = sorted(
        {encoder.submodel(each) for each in submodels}, key=lambda each: each.sort_key
    )
    for start in range(0, len(distinct), _TOGETHER):
        group = distinct[start : start + _TOGETHER]
        together = _in_batches(encoder, pixels, group, batch_size, precision)
        for submodel, vectors in zip(group, together, strict=True):
            yield submodel, _unit_vectors(vectors, encoder.name)


class ContinuedEmbedding:
    """Images that are embedded by one submodel after the other, each going on where it can.

    Submodels whose first blocks keep as many hidden units and merge as many tokens have the same
    hidden states up to there, and the attention of the block where they part is the same too. What
    was computed once is kept, so a larger submodel pays only for what is new. The vectors are those
    of `embed`: with torch bit for bit if as many images run together, with ONNX Runtime to the
    rounding of the arithmetic.

    Not for several threads at once: it remembers.

    Args:
        encoder: A whole encoder.
        pixels: Images as `Preprocess.pixels` makes them.
        precision: As for `embed`.

    Raises:
        ValueError: If the pixels are not uint8 or of another size than the encoder takes, or the
            encoder is in training mode.

    Attributes:
        macs: Multiply-accumulates spent on each image so far.
    """

    def __init__(
        self,
        encoder: Encoder,
        pixels: UInt8[ndarray, "images height width 3"],
        *,
        precision: Precision = "auto",
    ) -> None:
        if pixels.dtype != np.uint8:
            raise ValueError(f"expected uint8 pixels, got {pixels.dtype}")
        encoder.config.check_size(*pixels.shape[1:3])
        self._encoder, self._pixels = encoder, pixels
        self._number_format = encoder.number_format(precision, len(pixels))
        self._memory: Memory = defaultdict(dict)
        self._done: list[Submodel] = []
        self.macs = 0

    def embed(
        self, submodel: Submodel | Granularity | str | None = None
    ) -> Float32[ndarray, "images dim"]:
        """Embed the images with a submodel, from the longest prefix that ran before.

        Returns:
            float32 embeddings of length one.

        Raises:
            ValueError: If the submodel is not one of the encoder's, or an embedding is not finite.
        """
        chosen = self._encoder.submodel(submodel)
        added = self.added_macs(chosen)
        (vectors,) = self._encoder.embed_pixels(
            self._pixels, [chosen], self._number_format, self._memory
        )
        self.macs += added
        self._done.append(chosen)
        return _unit_vectors(vectors, self._encoder.name)

    def added_macs(self, submodel: Submodel | Granularity | str | None = None) -> int:
        """Multiply-accumulates per image that embedding with a submodel would add now."""
        return added_macs(self._encoder, self._encoder.submodel(submodel), self._done)

    def take(self, rows: Int64[ndarray, " rows"]) -> ContinuedEmbedding:
        """Return some of the images, to go on with those alone."""
        part = object.__new__(ContinuedEmbedding)
        part._encoder, part._pixels = self._encoder, self._pixels[rows]
        part._number_format, part._memory = self._number_format, defaultdict(dict)
        for weights, states in self._memory.items():
            part._memory[weights] = {
                made_by: state._make(None if part is None else part[rows] for part in state)
                for made_by, state in states.items()
            }
        part._done, part.macs = list(self._done), self.macs
        return part


def added_macs(encoder: Encoder, submodel: Submodel, done: Sequence[Submodel]) -> int:
    """Multiply-accumulates that a submodel adds to others which have run on the same image."""
    weights = encoder.weights_of(submodel)
    shared = [
        count_shared_macs(encoder.config, submodel, each)
        for each in done
        if encoder.weights_of(each) == weights
    ]
    return count_macs(encoder.config, submodel) - max(shared, default=0)


def _in_batches(
    encoder: Encoder,
    pixels: UInt8[ndarray, "images height width 3"],
    submodels: list[Submodel],
    batch_size: int,
    precision: Precision,
) -> Float32[ndarray, "submodels images dim"]:
    """Run all images through some submodels of an encoder, a batch at a time."""
    if pixels.dtype != np.uint8 or batch_size < 1:
        raise ValueError(
            f"expected uint8 pixels and a batch_size of at least 1, got {pixels.dtype} "
            f"and {batch_size}"
        )
    number_format = encoder.number_format(precision, len(pixels))
    vectors = np.empty((len(submodels), len(pixels), encoder.config.embed_dim), dtype=np.float32)
    for start in range(0, len(pixels), batch_size):
        rows = slice(start, start + batch_size)
        vectors[:, rows] = encoder.embed_pixels(pixels[rows], submodels, number_format)
    return vectors


def _unit_vectors(
    vectors: Float32[ndarray, "images dim"], encoder_name: str
) -> Float32[ndarray, "images dim"]:
    """Bring what an encoder returned to length one, exactly.

    Raises:
        ValueError: If a vector is not finite.
    """
    if not np.isfinite(vectors).all():
        raise ValueError(
            f"encoder {encoder_name} produced embeddings that are not finite; "
            "its weights are damaged or it needs precision='float32'"
        )
    # bfloat16 leaves the length off by up to 1 %; the index stores cosines.
    unit: Float32[ndarray, "images dim"] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
