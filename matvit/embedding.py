"""Pixels to embeddings: the one function that corpus, query and evaluation use."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from matvit.config import MatViTConfig
from matvit.preprocess import Preprocess
from matvit.submodel import Granularity, Submodel

Precision = Literal["auto", "float32", "bfloat16"]

_FEW = 4


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
    if pixels.dtype != np.uint8 or batch_size < 1:
        raise ValueError(
            f"expected uint8 pixels and a batch_size of at least 1, got {pixels.dtype} "
            f"and {batch_size}"
        )
    if encoder.training:
        raise ValueError(f"encoder {encoder.name} is in training mode; call eval() first")
    chosen = encoder.submodel(submodel)
    dtype = resolve_precision(encoder.device, precision, len(pixels))
    parts = [np.empty((0, encoder.config.embed_dim), dtype=np.float32)]
    with torch.inference_mode(), precision_of(encoder.device, dtype):
        for start in range(0, len(pixels), batch_size):
            images = to_input(pixels[start : start + batch_size], encoder)
            parts.append(encoder.encode(images, chosen).float().cpu().numpy())
    return unit_vectors(np.concatenate(parts), encoder.name)


def unit_vectors(
    vectors: Float[ndarray, "images dim"], encoder_name: str
) -> Float[ndarray, "images dim"]:
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
    unit: Float[ndarray, "images dim"] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


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
