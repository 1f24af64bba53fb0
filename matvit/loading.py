"""Encoders to and from disk, whatever runs them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matvit
from matvit.checkpoint import fitting, read_encoder
from matvit.encoder import Encoder

if TYPE_CHECKING:
    import torch


def load_encoder(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    runtime: Literal["auto", "torch", "onnx"] = "auto",
    threads: int | None = None,
) -> Encoder:
    """Load an encoder: a bundled one by name, a folder that `save_encoder` wrote, or from the hub.

    Args:
        source: Name or folder; or `hf-hub:owner/name`, which is fetched once, if the hub's
            library is installed, and then found in its cache.
        device: `"cpu"` or `"cuda"`.
        runtime: What computes. `"auto"` is ONNX Runtime on a CPU, which embeds a single query
            about twice as fast as torch does, and torch on a GPU. Vectors and fingerprint are the
            same; training, converting and extracting need torch, see `MatViT.load`.
        threads: That ONNX Runtime computes with; None for `OMP_NUM_THREADS`, else one for each CPU
            that the process may use. Torch has `torch.set_num_threads`.

    Returns:
        A whole encoder, or a submodel extracted from one.

    Raises:
        FileNotFoundError: If there is neither; the message lists the bundled names.
        ValueError: If a file is damaged or of another version, the files do not fit together, or
            ONNX Runtime is asked for on a GPU.

    Examples:
        >>> encoder = load_encoder("matvit-tiny64")
        >>> encoder.name, encoder.preprocess.img_size
        ('matvit-tiny64', 64)
    """
    if runtime not in ("auto", "torch", "onnx"):
        raise ValueError(f"runtime must be auto, torch or onnx, got {runtime!r}")
    if runtime == "onnx" and str(device) != "cpu":
        raise ValueError(f"runtime onnx computes on cpu, not {device}; use torch or auto")
    settings, tensors = read_encoder(source)
    by_onnx = runtime == "onnx" or (
        runtime == "auto" and str(device) == "cpu" and find_spec("onnxruntime") is not None
    )
    with fitting(source):
        if by_onnx:
            return matvit.OnnxEncoder(settings, tensors, threads=threads)
        if settings.submodel is None:
            return matvit.whole_encoder(settings, tensors).to(device)
        return matvit.ExtractedViT.of(settings, tensors).to(device)


def save_encoder(
    encoder: matvit.MatViT | matvit.ExtractedViT,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    training: dict[str, Any] | None = None,
) -> Path:
    """Write a whole encoder, or an extracted submodel, into a folder; see `MatViT.save`."""
    chosen = {} if dtype is None else {"dtype": dtype}
    return encoder.save(folder, training=training, **chosen)
