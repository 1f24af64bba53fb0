"""Torch's side of a checkpoint: the modules that hold the weights, and writing them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from msgspec import UNSET
from safetensors.torch import save
from torch import Tensor

from matvit.checkpoint import ANCHOR, FORMAT_VERSION, SETTINGS, WEIGHTS, Settings, Tensors
from matvit.conversion.anchored import AnchoredMatViT
from matvit.extraction import ExtractedViT
from matvit.identity import fingerprint_of
from matvit.model import MatViT
from matvit.submodel import Submodel
from matvit.torch_runtime import arrays_of
from matvit.writing import write_atomically


def torch_encoder(settings: Settings, files: Mapping[str, Tensors]) -> MatViT | ExtractedViT:
    """Make the encoder that the settings describe, of the tensors of each file.

    Raises:
        ValueError: If they do not fit.
    """
    config, preprocess, name = settings.model, settings.preprocess, settings.name
    tensors = {
        file: {key: torch.from_numpy(each) for key, each in arrays.items()}
        for file, arrays in files.items()
    }
    try:
        if settings.submodel is not None:
            cut = Submodel.parse(
                settings.submodel, depth=config.depth, hidden_dim=config.hidden_dim
            )
            extracted = ExtractedViT(config, cut, preprocess, name, settings.fingerprint)
            extracted.take_weights(tensors[WEIGHTS])
            return extracted
        if settings.anchor is UNSET:
            model = MatViT(config, preprocess, name)
        else:
            model = anchored = AnchoredMatViT(config, preprocess, name)
            anchored.anchor.load_state_dict(tensors[ANCHOR])
        model.backbone.load_state_dict(tensors[WEIGHTS])
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return model


def save_encoder(
    encoder: MatViT | ExtractedViT,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    training: dict[str, Any] | None = None,
) -> Path:
    """Write weights, settings and fingerprints into a folder; weights first, settings last.

    Each file appears in one step. An interrupted write leaves files whose fingerprints disagree,
    which `load_encoder` refuses.

    Args:
        encoder: A whole encoder, or an extracted submodel.
        folder: Created if missing; an earlier encoder in it is replaced.
        dtype: Stored precision. With float16 the file is half as large, and the encoder it
            loads as (float32 values rounded to float16) has its own fingerprint. An anchor is
            never rounded.
        training: Anything worth remembering about how the weights came to be.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = _files(encoder, dtype)
    weights = fingerprint_of(encoder.config, arrays_of(files[WEIGHTS]))
    written = {name: _write(folder / name, tensors) for name, tensors in files.items()}
    is_extracted = isinstance(encoder, ExtractedViT)
    settings = Settings(
        format_version=FORMAT_VERSION,
        name=encoder.name,
        # Rounding may have changed the weights, but not those of an anchor.
        fingerprint=encoder.fingerprint if is_extracted or ANCHOR in files else weights,
        weights=weights,
        submodel=str(encoder.submodel()) if is_extracted else None,
        model=encoder.config,
        preprocess=encoder.preprocess,
        training=training or {},
        anchor=ANCHOR if ANCHOR in files else UNSET,
        files=written,
    )
    write_atomically(folder / SETTINGS, lambda stream: stream.write(settings.to_json()))
    if ANCHOR not in files:
        (folder / ANCHOR).unlink(missing_ok=True)  # of an earlier encoder in this folder
    return folder


def _files(encoder: MatViT | ExtractedViT, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each file, as they are stored."""
    weights = encoder if isinstance(encoder, ExtractedViT) else encoder.backbone
    files = {
        WEIGHTS: {
            key: value.detach().to("cpu", torch.float32).to(dtype).contiguous()
            for key, value in weights.state_dict().items()
        }
    }
    if isinstance(encoder, AnchoredMatViT):
        files[ANCHOR] = {
            key: _lossless(value.detach().to("cpu", torch.float32), dtype)
            for key, value in encoder.anchor.state_dict().items()
        }
    return files


def _write(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors and return the SHA-256 of the file."""
    data = save(tensors, metadata={"format": "pt"})
    return write_atomically(path, lambda stream: stream.write(data)).sha256


def _lossless(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to a smaller type where that changes no value."""
    rounded = tensor.to(dtype)
    return (rounded if torch.equal(rounded.float(), tensor) else tensor).contiguous()
