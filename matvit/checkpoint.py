"""Encoders on disk: `model.safetensors` and `config.json` in one folder.

A converted encoder has a third file, `anchor.safetensors`: the full size, as it was before the
conversion.

The fingerprint identifies an encoder by architecture and weights. An index stores it and refuses
any other encoder; a submodel extracted from a model keeps its parent's, since it answers the
same index.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from matvit.config import MatViTConfig
from matvit.preprocess import Preprocess

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
ANCHOR = "anchor.safetensors"
SETTINGS = "config.json"
DEFAULT = "matvit-tiny64"
BUNDLED = Path(__file__).parent / "weights"
_KEYS = {
    "format_version", "name", "fingerprint", "weights", "submodel", "model", "preprocess",
    "training",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A stored encoder.

    Attributes:
        name: What to call it.
        config: Architecture of the full model.
        preprocess: How images become its input.
        tensors: float32 weights under timm's names.
        training: How the weights came to be; free-form.
        submodel: For an extracted submodel, what was cut; None for a full MatViT.
        fingerprint: Identity of the full encoder; computed from the weights if empty.
        anchor: Weights that a converted encoder runs its full size from; None if from `tensors`.
    """

    name: str
    config: MatViTConfig
    preprocess: Preprocess
    tensors: Mapping[str, Tensor]
    training: dict[str, Any] = field(default_factory=dict)
    submodel: str | None = None
    fingerprint: str = ""
    anchor: Mapping[str, Tensor] | None = None


def fingerprint(config: MatViTConfig, tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that change with the architecture or with any weight of the encoder.

    The classification head is left out: it takes no part in embedding.

    Args:
        config: Architecture.
        tensors: Weights under timm's names; compared as float32.
    """
    shape = {key: value for key, value in config.to_dict().items() if key != "num_classes"}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for key in sorted(key for key in tensors if not key.startswith("head.")):
        values = tensors[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"\n{key} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_version(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Something that changes when a weight is replaced or updated in place, found without hashing.

    Torch counts the in-place updates of every tensor; tensors made in inference mode are not
    counted, and cannot be trained either.
    """
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in module.parameters())


def bundled() -> list[str]:
    """Names of the encoders that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{SETTINGS}"))


def locate(source: str | Path) -> Path:
    """Find a checkpoint folder: a bundled name, or a path.

    Raises:
        FileNotFoundError: If there is neither.
    """
    if str(source) in bundled():
        return BUNDLED / str(source)
    folder = Path(source)
    if (folder / SETTINGS).is_file():
        return folder
    raise FileNotFoundError(
        f"no encoder {str(source)!r}: bundled encoders are {', '.join(bundled()) or 'none'}; "
        f"or give a folder that holds {SETTINGS} and {WEIGHTS}"
    )


def write(folder: str | Path, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint; weights first, settings last, each in one step.

    An interrupted write leaves files whose fingerprints disagree, which `read` refuses. `dtype`
    is for the weights; an anchor is stored in it only where that loses nothing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights_fingerprint = fingerprint(checkpoint.config, checkpoint.tensors)
    anchor = checkpoint.anchor
    identity = checkpoint.fingerprint or weights_fingerprint
    settings = {
        "format_version": FORMAT_VERSION,
        "name": checkpoint.name,
        "fingerprint": identity if anchor is None else fingerprint(checkpoint.config, anchor),
        "weights": weights_fingerprint,
        "submodel": checkpoint.submodel,
        "model": checkpoint.config.to_dict(),
        "preprocess": checkpoint.preprocess.to_dict(),
        "training": checkpoint.training,
        **({} if anchor is None else {"anchor": ANCHOR}),
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as staging:
        description = Path(staging) / SETTINGS
        _save(checkpoint.tensors, Path(staging) / WEIGHTS, dtype)
        if anchor is not None:
            _save(anchor, Path(staging) / ANCHOR, dtype, exact=True)
        description.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        for made in (WEIGHTS, *(() if anchor is None else (ANCHOR,)), SETTINGS):
            (Path(staging) / made).replace(folder / made)
    if anchor is None:
        (folder / ANCHOR).unlink(missing_ok=True)  # of an earlier checkpoint in this folder
    return folder


def read(source: str | Path) -> Checkpoint:
    """Read a checkpoint, whole or extracted, and check that the weights are those written.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If a file is damaged or of another version.
    """
    folder = locate(source)
    settings = _read_settings(folder / SETTINGS)
    try:
        config = MatViTConfig.from_dict(settings["model"])
        preprocess = Preprocess.from_dict(settings["preprocess"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / SETTINGS}: {error}") from error
    tensors = _load(folder / WEIGHTS, config, settings["weights"])
    has_anchor = "anchor" in settings
    anchor = _load(folder / ANCHOR, config, settings["fingerprint"]) if has_anchor else None
    return Checkpoint(
        name=settings["name"],
        config=config,
        preprocess=preprocess,
        tensors=tensors,
        training=settings["training"],
        submodel=settings["submodel"],
        fingerprint=settings["fingerprint"],
        anchor=anchor,
    )


def _save(
    tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype, *, exact: bool = False
) -> None:
    """Write tensors; with `exact`, in float32 wherever `dtype` would change a value."""
    stored = {}
    for key, value in tensors.items():
        rounded = value.detach().to("cpu", dtype).clone()
        if exact and not torch.equal(rounded.float(), value.detach().cpu().float()):
            rounded = value.detach().to("cpu", torch.float32).clone()
        stored[key] = rounded
    save_file(stored, path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library makes it private


def _load(path: Path, config: MatViTConfig, expected: str) -> dict[str, Tensor]:
    """Read tensors as float32, and check that they are those written."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    tensors = {key: value.float() for key, value in stored.items()}
    found = fingerprint(config, tensors)
    if found != expected:
        raise ValueError(
            f"{path} is damaged or was changed: its fingerprint is {found}, "
            f"{SETTINGS} says {expected}; restore both files from where they came"
        )
    return tensors


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(settings, dict) or set(settings) - {"anchor"} != _KEYS:
        raise ValueError(f"{path} does not describe an encoder; expected keys {sorted(_KEYS)}")
    if settings["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {settings['format_version']}, "
            f"this program reads version {FORMAT_VERSION}"
        )
    return settings
