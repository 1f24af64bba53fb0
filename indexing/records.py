"""What is kept about the images of a corpus: those that could be read, and those that could not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

UNKNOWN = -1
"""Size or time of a file that nobody can tell."""

NEW = -1
"""Instead of a row: of an image that is not stored yet."""

NO_LABEL = -1
"""Class index of an image that has no class."""

RECORDS = pa.schema(
    [
        ("path", pa.string()),
        ("position", pa.int64()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("label", pa.int64()),
    ]
)
"""What is kept about an image that could be read; see `ImageRecord`."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What is known about an image that could be read.

    Attributes:
        position: Place among all images that there are, from 0.
        path: Name shown to people: path below the root, with forward slashes.
        bytes: Size of the image file.
        mtime_ns: When the file was last modified, in nanoseconds.
        sha256: Of the bytes of the image file, 64 hex digits.
        width: Pixels, after orientation.
        height: Pixels, after orientation.
        label: Class index, -1 for none.
    """

    position: int
    path: str
    bytes: int
    mtime_ns: int
    sha256: str
    width: int
    height: int
    label: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be read.

    Attributes:
        path: Name shown to people.
        error: Class name of the exception behind it, such as `UnidentifiedImageError`.
        message: The reason, in one line.
        position: Place among all images that there are, from 0.
        bytes: Size of the image file, -1 if unknown.
        mtime_ns: When the file was last modified, in nanoseconds, -1 if unknown.
    """

    path: str
    error: str
    message: str
    position: int
    bytes: int = UNKNOWN
    mtime_ns: int = UNKNOWN

    @property
    def was_read(self) -> bool:
        """Whether its bytes are known to be no image; else it may be one that is out of reach."""
        return self.bytes != UNKNOWN

    @property
    def is_folder(self) -> bool:
        """Whether it stands for all that is in a folder that could not be listed."""
        return self.path.endswith("/")


def is_below(names: pa.Array | pa.ChunkedArray, folders: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each name is that of something in one of some folders."""
    below = np.zeros(len(names), dtype=bool)
    for folder in folders:
        below |= np.array(pc.starts_with(names, folder).to_pylist(), dtype=bool)
    return below
