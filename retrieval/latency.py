"""How long a query takes on this machine, measured once and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray

from indexing import write_atomically
from matvit import Encoder, Submodel, resolve_precision
from retrieval.speed import measure_speed

_TIMES = 30
_LARGEST = 1 << 24


def named_ms(encoder: Encoder, names: Sequence[str]) -> dict[str, float]:
    """Return what `measured_ms` does for submodels that are given as text."""
    return measured_ms(encoder, [encoder.submodel(name) for name in names])


def measured_ms(
    encoder: Encoder,
    submodels: Sequence[Submodel],
    *,
    progress: bool = False,
    again: bool = False,
) -> dict[str, float]:
    """Return the median milliseconds that embedding one query takes on this machine.

    What was measured before on the same device, with as many threads and the same version of
    torch, is read from a file in the user's cache folder (`$XDG_CACHE_HOME/matvit`, else
    `~/.cache/matvit`). That file is only a memory: it may be deleted, and where it cannot be
    written the next call measures again.

    Args:
        encoder: The encoder, on the device where it answers.
        submodels: What to time; those that are missing are timed in turns.
        progress: Show a progress bar on stderr.
        again: Measure anew what is known.

    Returns:
        Milliseconds by the submodel as text, from decoded pixels to the vector.
    """
    key = _conditions(encoder)
    path = _cache_file(key)
    known = {} if again else _read(path, key)
    missing = [each for each in dict.fromkeys(submodels) if str(each) not in known]
    if missing:
        speeds = measure_speed(
            encoder,
            missing,
            _picture(encoder),
            latency_queries=_TIMES,
            batches=0,
            progress=progress,
        )
        new = {str(each): speed.latency_ms_p50 for each, speed in zip(missing, speeds, strict=True)}
        known = {**_read(path, key), **known, **new}
        _write(path, key, known)
    return {str(each): known[str(each)] for each in submodels}


def describe_device(device: torch.device) -> str:
    """Name a device; on a CPU the number of threads decides as much as the model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _picture(encoder: Encoder) -> UInt8[ndarray, "images height width 3"]:
    """One picture of noise: what is in it makes no difference to how long it takes."""
    side = encoder.preprocess.img_size
    return np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)


def _conditions(encoder: Encoder) -> dict[str, str]:
    """Everything that a latency depends on, besides the submodel."""
    return {
        "encoder": encoder.name,
        "weights": encoder.weights_fingerprint,
        "device": describe_device(encoder.device),
        "processor": _processor(),
        "cpus": str(os.cpu_count()),
        "precision": str(resolve_precision(encoder.device, images=1)),
        "torch": str(torch.__version__),
    }


def _processor() -> str:
    """Model of the processor, such as `AMD EPYC`; a home folder may be shared by several."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {models[0] if models else platform.processor()}".strip()


def _cache_file(key: dict[str, str]) -> Path | None:
    """Where latencies are kept; None for a user without a home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    text = json.dumps(key, sort_keys=True)
    return root / "matvit" / f"latency-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _read(path: Path | None, key: dict[str, str]) -> dict[str, float]:
    """Read what is known; nothing if there is no file or it is not what was written."""
    if path is None:
        return {}
    try:
        if path.stat().st_size > _LARGEST:
            return {}
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["conditions"] != key:
            return {}
        known = {str(name): float(ms) for name, ms in document["milliseconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: ms for name, ms in known.items() if 0 < ms < float("inf")}


def _write(path: Path | None, key: dict[str, str], known: dict[str, float]) -> None:
    """Remember, if there is a place to."""
    if path is None:
        return
    text = json.dumps({"conditions": key, "milliseconds": known}, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda stream: stream.write(text.encode()))
    except OSError:
        return
