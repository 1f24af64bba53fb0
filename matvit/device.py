"""Where an encoder runs, found out without waiting for torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Literal

import matvit

_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def has_torch() -> bool:
    """Whether torch is installed; it is not imported."""
    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):
        return False


def resolve_device(device: str) -> Literal["cpu", "cuda"]:
    """Turn `auto`, `cpu` or `cuda` into a device.

    Torch takes seconds to import: it is asked only on a machine that looks like it had a GPU.

    Raises:
        ValueError: If the name is unknown, or `cuda` is asked for where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cpu" or (device == "auto" and not (has_torch() and _looks_like_gpu())):
        return "cpu"
    if matvit.sees_gpu():
        return "cuda"
    if device == "cuda":
        raise ValueError("device cuda was asked for, but torch sees no GPU; use auto or cpu")
    return "cpu"


def _looks_like_gpu() -> bool:
    return any(Path(each).exists() for each in _GPU_FILES) or which("nvidia-smi") is not None
