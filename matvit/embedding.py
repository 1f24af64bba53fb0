"""Pixels to embeddings: what corpus, query, evaluation and tuning use.

One submodel (`embed`), many that share what they can (`embed_each`), or one after the other, each
going on from where an earlier one agreed with it (`ContinuedEmbedding`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from numpy import ndarray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import normalize

from matvit.config import MatViTConfig
from matvit.cost import count_macs, count_shared_macs
from matvit.model import MatViT, Memory, pool, run
from matvit.preprocess import Preprocess
from matvit.submodel import Granularity, Submodel

Precision = Literal["auto", "float32", "bfloat16"]

_FEW = 4
_TOGETHER = 16  # submodels; more share more, but need memory for as many hidden states


class Encoder(Protocol):
    """What search needs of an encoder: a `MatViT`, or a submodel extracted from one."""

    name: str
    config: MatViTConfig
    preprocess: Preprocess
    training: bool

    @property
    def fingerprint(self) -> str:
        """Identity of the full encoder's weights."""

    @property
    def weights_fingerprint(self) -> str:
        """Identity of the weights that the smaller sizes run from."""

    @property
    def device(self) -> torch.device:
        """Where the weights live."""

    def submodel(self, spec: Submodel | Granularity | str | None = None) -> Submodel:
        """Resolve what a caller wrote; None is the largest size this encoder has."""

    def encode(self, images: Tensor, submodel: Submodel | str | None = None) -> Tensor:
        """Embed normalised images of shape (batch, 3, height, width), to length one."""


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
        precision: `"auto"` computes in bfloat16 where the machine gains from it and in float32
            elsewhere: on a CPU without the instructions, and there for a few images, where
            casting the weights costs more than it saves. The two agree to a cosine of at least
            0.999.

    Returns:
        float32 embeddings of length one, in the order of `pixels`.

    Raises:
        ValueError: If the submodel is not one of the encoder's, the pixels are not uint8, the
            encoder is in training mode (stochastic depth would make its vectors random), or an
            embedding is not finite.
    """
    chosen = encoder.submodel(submodel)

    def run_batch(images: Tensor) -> Tensor:
        return encoder.encode(images, chosen)[None]

    (vectors,) = _in_batches(encoder, pixels, run_batch, 1, batch_size, precision)
    return _unit_vectors(vectors, encoder.name)


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
        ValueError: As `embed` does.
    """
    distinct = sorted({model.submodel(each) for each in submodels}, key=lambda each: each.widths)
    for start in range(0, len(distinct), _TOGETHER):
        group = distinct[start : start + _TOGETHER]
        together = _in_batches(
            model, pixels, partial(_run_group, model, group), len(group), batch_size, precision
        )
        for submodel, vectors in zip(group, together, strict=True):
            yield submodel, _unit_vectors(vectors, model.name)


def _run_group(model: MatViT, group: Sequence[Submodel], images: Tensor) -> Tensor:
    return normalize(model.vectors(images, group), dim=-1)


class ContinuedEmbedding:
    """Images that are embedded by one submodel after the other, each going on where it can.

    Submodels whose first blocks keep the same widths have the same hidden states up to there, and
    the attention of the block where they part is the same too. What was computed once is kept, so
    a larger submodel pays only for what is new. The vectors are those of `embed`: bit for bit if
    as many images run together.

    Not for several threads at once: it remembers.

    Args:
        model: A whole encoder.
        pixels: Images as `Preprocess.pixels` makes them.
        precision: As for `embed`.

    Raises:
        ValueError: If the pixels are not uint8, or the encoder is in training mode.

    Attributes:
        macs: Multiply-accumulates spent on each image so far.
    """

    def __init__(
        self,
        model: MatViT,
        pixels: UInt8[ndarray, "images height width 3"],
        *,
        precision: Precision = "auto",
    ) -> None:
        if pixels.dtype != np.uint8:
            raise ValueError(f"expected uint8 pixels, got {pixels.dtype}")
        _check_mode(model)
        self._model = model
        self._dtype = resolve_precision(model.device, precision, len(pixels))
        self._images = to_input(pixels, model)
        model.check(self._images)
        self._memory: dict[VisionTransformer, Memory] = defaultdict(dict)
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
        chosen = self._model.submodel(submodel)
        weights = self._model.weights_of(chosen)
        added = self.added_macs(chosen)
        with torch.inference_mode(), precision_of(self._model.device, self._dtype):
            tokens = run(weights, self._images, [chosen], self._memory[weights])
            vectors = normalize(pool(weights, tokens)[0], dim=-1).float().cpu().numpy()
        self.macs += added
        self._done.append(chosen)
        return _unit_vectors(vectors, self._model.name)

    def added_macs(self, submodel: Submodel | Granularity | str | None = None) -> int:
        """Multiply-accumulates per image that embedding with a submodel would add now."""
        return added_macs(self._model, self._model.submodel(submodel), self._done)

    def take(self, rows: Int64[ndarray, " rows"]) -> ContinuedEmbedding:
        """Return some of the images, to go on with those alone."""
        part = object.__new__(ContinuedEmbedding)
        part._model, part._dtype = self._model, self._dtype
        chosen = torch.from_numpy(np.asarray(rows)).to(self._images.device)
        with torch.inference_mode():
            part._images = self._images[chosen]
            part._memory = defaultdict(dict)
            for weights, states in self._memory.items():
                part._memory[weights] = {widths: each[chosen] for widths, each in states.items()}
        part._done, part.macs = list(self._done), self.macs
        return part


def added_macs(model: MatViT, submodel: Submodel, done: Sequence[Submodel]) -> int:
    """Multiply-accumulates that a submodel adds to others which have run on the same image."""
    weights = model.weights_of(submodel)
    shared = [
        count_shared_macs(model.config, submodel, each)
        for each in done
        if model.weights_of(each) is weights
    ]
    return count_macs(model.config, submodel) - max(shared, default=0)


def _in_batches(
    encoder: Encoder,
    pixels: UInt8[ndarray, "images height width 3"],
    run_batch: Callable[[Tensor], Tensor],
    submodels: int,
    batch_size: int,
    precision: Precision,
) -> Float32[ndarray, "submodels images dim"]:
    """Run all images through some submodels of an encoder, a batch at a time."""
    if pixels.dtype != np.uint8 or batch_size < 1:
        raise ValueError(
            f"expected uint8 pixels and a batch_size of at least 1, got {pixels.dtype} "
            f"and {batch_size}"
        )
    _check_mode(encoder)
    dtype = resolve_precision(encoder.device, precision, len(pixels))
    vectors = np.empty((submodels, len(pixels), encoder.config.embed_dim), dtype=np.float32)
    with torch.inference_mode(), precision_of(encoder.device, dtype):
        for rows, images in batches(encoder, pixels, batch_size):
            vectors[:, rows] = run_batch(images).float().cpu().numpy()
    return vectors


def batches(
    encoder: Encoder, pixels: UInt8[ndarray, "images height width 3"], batch_size: int
) -> Iterator[tuple[slice, Float[Tensor, "batch 3 height width"]]]:
    """Yield images as the encoder takes them, some at a time, and which rows of all they are."""
    for start in range(0, len(pixels), batch_size):
        rows = slice(start, start + batch_size)
        yield rows, to_input(pixels[rows], encoder)


def to_input(
    pixels: UInt8[ndarray, "batch height width 3"], encoder: Encoder
) -> Float[Tensor, "batch 3 height width"]:
    """Move uint8 pixels to the encoder's device and normalise them there."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(encoder.device)
    return normalize_pixels(images.permute(0, 3, 1, 2), encoder.preprocess)


def normalize_pixels(
    images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"],
    preprocess: Preprocess,
) -> Float[Tensor, "batch 3 height width"]:
    """Bring pixels on the scale 0..255 to the mean and deviation the encoder expects."""
    mean = torch.tensor(preprocess.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(preprocess.std, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def _check_mode(encoder: Encoder) -> None:
    """Refuse an encoder whose vectors would be random."""
    if encoder.training:
        raise ValueError(f"encoder {encoder.name} is in training mode; call eval() first")


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


@cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def resolve_precision(
    device: torch.device, precision: Precision = "auto", images: int | None = None
) -> torch.dtype:
    """Return the type that matrix products run in on `device`.

    Args:
        device: Where the encoder is.
        precision: What was asked for.
        images: How many are embedded together; None for many.

    Raises:
        ValueError: If `precision` is unknown.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and cpu_has_bfloat16() and (images is None or images >= _FEW)
    return torch.bfloat16 if fast else torch.float32


def resolve_device(device: str) -> torch.device:
    """Turn `auto`, `cpu` or `cuda` into a device.

    Raises:
        ValueError: If the name is unknown, or `cuda` is asked for where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no GPU; use auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def precision_of(device: torch.device, dtype: torch.dtype) -> torch.autocast | nullcontext[None]:
    """Return a context in which matrix products on `device` run in `dtype`."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
