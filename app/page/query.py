"""What the page asks with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from indexing import ImageIndex
from matvit import read_dimensions

MAX_UPLOAD_BYTES = 20_000_000

MAX_UPLOAD_PIXELS = 51_000_000
"""What cameras and telephones of 50 megapixels take; about a gigabyte while it is decoded."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """An image to ask with.

    Attributes:
        data: The bytes of its file.
        name: What to call it.
        id: Its number in the index; None for an upload.
        label: Its class, where that is known.
    """

    data: bytes
    name: str
    id: int | None = None
    label: str | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.data).hexdigest()


def stored_query(index: ImageIndex, number: int) -> Query:
    """Ask with an image of the index.

    Raises:
        KeyError: If the index has no such image.
        FileNotFoundError: If its file is gone.
        ValueError: If its file is no longer what was indexed.
    """
    row = int(index.rows_of(np.array(number)))
    names, label = index.class_names, int(index.labels[row])
    return Query(
        data=index.image_bytes(number),
        name=index.paths[row],
        id=number,
        label=names[label] if names and label >= 0 else None,
    )


def uploaded_query(name: str, data: bytes) -> Query:
    """Ask with a file that somebody sent.

    Raises:
        ValueError: If it is too large.
    """
    # A flat picture is a small file, whatever room it takes once it is decoded.
    if len(data) > MAX_UPLOAD_BYTES:
        raise ValueError(f"the file has {len(data):,} bytes; at most {MAX_UPLOAD_BYTES:,} please")
    width, height = _size(data)
    if width * height > MAX_UPLOAD_PIXELS:
        raise ValueError(
            f"the image has {width:,} x {height:,} pixels; at most {MAX_UPLOAD_PIXELS:,} "
            "altogether please, so send a smaller copy"
        )
    return Query(data=data, name=name)


def _size(data: bytes) -> tuple[int, int]:
    """Read width and height; 0 x 0 of what is no image, which is told when it is looked at."""
    try:
        return read_dimensions(data)
    except ValueError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise ValueError(
                f"the image has far more than the {MAX_UPLOAD_PIXELS:,} pixels that are taken "
                "here, so send a smaller copy"
            ) from error
        return 0, 0
