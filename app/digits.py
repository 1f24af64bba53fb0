"""The demo's images: scikit-learn's handwritten digits, which come inside a dependency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
"""Pixels per side of the files; the originals have 8."""


def write_digits(folder: Path) -> Path:
    """Write the 1,797 digits as PNG files, one folder per class, and return the folder.

    Files that are there already are left alone.

    References:
        Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
        https://doi.org/10.24432/C50P49; bundled with scikit-learn as `load_digits`.
    """
    from sklearn.datasets import load_digits  # takes most of a second

    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{number:04}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            gray = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
            partial = path.with_suffix(".partial")
            gray.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(partial, "PNG")
            partial.replace(path)
    return folder
