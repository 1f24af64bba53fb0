"""Loading an encoder, for whatever is to run it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import matvit
from matvit.checkpoint import Settings, Tensors, locate, read_settings, read_tensors
from matvit.cost import count_params
from matvit.encoder import Encoder, resolve_submodel

if TYPE_CHECKING:
    import torch


def load_encoder(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    runtime: Literal["auto", "torch", "onnx"] = "auto",
    threads: int | None = None,
) -> Encoder:
    """Load an encoder: a bundled one by name, or a folder that `save_encoder` wrote.

    Args:
        source: Name or folder.
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
    folder, settings = locate(source), read_settings(source)
    tensors = read_tensors(folder, settings)
    by_onnx = runtime == "onnx" or (
        runtime == "auto" and str(device) == "cpu" and find_spec("onnxruntime") is not None
    )
    try:
        _check_amount(settings, tensors)
        if by_onnx:
            return matvit.OnnxEncoder(settings, tensors, threads=threads)
        return matvit.torch_encoder(settings, tensors).to(device)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the weights in {folder} do not fit its settings: {reason}") from error


def _check_amount(settings: Settings, tensors: Mapping[str, Tensors]) -> None:
    """Make sure that there are weights for all that the settings describe, before it is made.

    Raises:
        ValueError: If there are not.
    """
    config = settings.model
    wanted = count_params(config, resolve_submodel(config, settings.submodel))
    classes = config.num_classes if settings.submodel is None else 0
    for name, stored in tensors.items():
        found = sum(tensor.size for tensor in stored.values())
        if found < wanted + classes:
            raise ValueError(
                f"{name} has {found:,} values, the settings describe {wanted:,} and "
                f"{classes:,} classes"
            )
