"""Finding the encoder that an index was built by."""

from __future__ import annotations

from pathlib import Path

import torch

from indexing import ImageIndex
from matvit import ExtractedViT, MatViT, bundled, load_encoder


def load_encoder_for(
    index: ImageIndex, encoder: str | None = None, device: torch.device | str = "cpu"
) -> MatViT | ExtractedViT:
    """Load the encoder that was named, or the bundled one that built the index.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If none was named and the index was built by one that is not bundled.
    """
    return load_encoder(encoder_name_for(index, encoder), device=device)


def encoder_name_for(index: ImageIndex, encoder: str | None) -> str:
    """Return the encoder that was named, or the bundled one that built the index.

    Raises:
        ValueError: If none was named and the index was built by one that is not bundled.
    """
    return encoder_name(index.path, str(index.info()["encoder"]["name"]), encoder)


def encoder_name(path: Path, built_by: str, encoder: str | None) -> str:
    """Return the encoder that was named, or the one that built the index at a path, if bundled.

    Raises:
        ValueError: If none was named and the index was built by one that is not bundled.
    """
    if encoder is None and built_by not in bundled():
        raise ValueError(
            f"{path} was built by encoder {built_by!r}, which is not bundled; "
            "name its folder with --encoder"
        )
    return encoder or built_by
