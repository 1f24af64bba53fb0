"""Encoders that torch runs: pixels as tensors, on a device, in a precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray
from safetensors.torch import save
from torch import Tensor, nn

from matvit.config import MatViTConfig
from matvit.encoder import Precision, Runtime

if TYPE_CHECKING:
    from matvit.preprocess import Preprocess

_FEW = 4


class TorchEncoder(Protocol):
    """What torch needs of an encoder to run it."""

    name: str
    config: MatViTConfig
    preprocess: Preprocess
    training: bool

    @property
    def device(self) -> torch.device:
        """Where the weights live."""


def batches(
    encoder: TorchEncoder, pixels: UInt8[ndarray, "images height width 3"], batch_size: int
) -> Iterator[tuple[slice, Float[Tensor, "batch 3 height width"]]]:
    """Yield images as the encoder takes them, some at a time, and which rows of all they are."""
    for start in range(0, len(pixels), batch_size):
        rows = slice(start, start + batch_size)
        yield rows, to_input(pixels[rows], encoder)


def to_input(
    pixels: UInt8[ndarray, "batch height width 3"], encoder: TorchEncoder
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


def number_format(encoder: TorchEncoder, precision: Precision, images: int | None) -> str:
    """Do what `Encoder.number_format` says."""
    if encoder.training:
        raise ValueError(f"encoder {encoder.name} is in training mode; call eval() first")
    return str(resolve_precision(encoder.device, precision, images)).removeprefix("torch.")


@contextmanager
def running(
    encoder: TorchEncoder,
    pixels: UInt8[ndarray, "batch height width 3"],
    number_format: str,
) -> Iterator[Float[Tensor, "batch 3 height width"]]:
    """Give the images as the encoder takes them, to be run without gradients."""
    dtype = getattr(torch, number_format)
    with torch.inference_mode(), precision_of(encoder.device, dtype):
        yield to_input(pixels, encoder)


def sees_gpu() -> bool:
    """Whether torch can use a GPU."""
    return torch.cuda.is_available()


def precision_of(device: torch.device, dtype: torch.dtype) -> torch.autocast | nullcontext[None]:
    """Return a context in which matrix products on `device` run in `dtype`."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def runtime_on(device: torch.device) -> Runtime:
    """Say where torch runs; on a CPU the number of threads decides as much as the model."""
    place = f"{device.type}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    return Runtime("torch", str(torch.__version__), device.type, place)


def arrays_of(tensors: Mapping[str, Tensor]) -> dict[str, Float32[ndarray, "..."]]:
    """Return the weights of a state dict as float32 arrays."""
    return {
        key: value.detach().to("cpu", torch.float32).contiguous().numpy()
        for key, value in tensors.items()
    }


def weights_version(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Something that changes when a weight is replaced or updated in place, found without hashing.

    Torch counts the in-place updates of every tensor; tensors made in inference mode are not
    counted, and cannot be trained either.
    """
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in module.parameters())


def stored(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights of a state dict as they are stored in a precision."""
    return {
        key: value.detach().to("cpu", torch.float32).to(dtype).contiguous()
        for key, value in tensors.items()
    }


def file_of(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors as a safetensors file."""
    return save(tensors, metadata={"format": "pt"})


def tensors_of(arrays: Mapping[str, Float32[ndarray, "..."]]) -> dict[str, Tensor]:
    """Return arrays as tensors that share their memory."""
    return {key: torch.from_numpy(value) for key, value in arrays.items()}
