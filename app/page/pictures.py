"""Pictures as a browser gets them: small, kept as bytes, of images of the corpus only."""

from __future__ import annotations

import io
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from jaxtyping import UInt8
from msgspec.structs import replace
from PIL import Image

from app.page.bounded import Bounded
from indexing import ImageIndex
from matvit import Preprocess, upright_rgb

SIDE = 224
"""Pixels per side of a thumbnail: sharp at the size it is shown, on most screens."""

KEPT_BYTES = 64_000_000
"""Thumbnails of one index that are kept: about five thousand."""

_QUALITY = 88
_SEEN_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A thumbnail of an indexed image.

    Attributes:
        data: A JPEG file; None where the original is gone or was changed.
        fetch_ms: Milliseconds that it took to read the original.
    """

    data: bytes | None
    fetch_ms: float

    @property
    def bytes(self) -> int:
        """What keeping it costs."""
        return 100 + len(self.data or b"")


class Pictures:
    """Thumbnails of an index, each read from its original once.

    Args:
        index: Whose images.
        preprocess: How its encoder looks at them; a thumbnail shows the same part.
        kept_bytes: Most that is kept.
    """

    def __init__(
        self, index: ImageIndex, preprocess: Preprocess, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._index, self._preprocess = index, preprocess
        self._kept: Bounded[int, Picture] = Bounded(kept_bytes, lambda picture: picture.bytes)

    def of(self, number: int) -> Picture:
        """Return the thumbnail of the image with this id.

        Raises:
            KeyError: If the index has no such image.
        """
        return self._kept.get(number, lambda: self._read(number))

    @property
    def used_bytes(self) -> int:
        """What is kept now."""
        return self._kept.used

    def _read(self, number: int) -> Picture:
        start = perf_counter()
        try:
            original = self._index.image_bytes(number)
            fetch_ms = 1000 * (perf_counter() - start)
            return Picture(data=thumbnail(original, self._preprocess), fetch_ms=fetch_ms)
        except (OSError, ValueError):
            return Picture(data=None, fetch_ms=1000 * (perf_counter() - start))


def thumbnail(data: bytes, preprocess: Preprocess, side: int = SIDE) -> bytes:
    """Make a square JPEG of the part of an image that its encoder looks at.

    Raises:
        ValueError: If the image cannot be read, or has too many pixels.
    """
    return _jpeg(Image.fromarray(replace(preprocess, img_size=side).pixels(data)))


def portrait(data: bytes, side: int = 2 * SIDE) -> bytes:
    """Make a JPEG of a whole image, shrunk or enlarged to `side` at its longer side.

    Args:
        data: A file that was read as an image before, and was not too large.
        side: Pixels.
    """
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (2 * side, 2 * side))
        whole = upright_rgb(image)
    scale = side / max(whole.size)
    size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
    return _jpeg(whole.resize(size, Image.Resampling.BICUBIC))


def as_seen(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Make a PNG in which every pixel that an encoder sees is a square, the seams left sharp."""
    times = max(1, _SEEN_SIDE // len(pixels))
    stream = io.BytesIO()
    Image.fromarray(pixels.repeat(times, axis=0).repeat(times, axis=1)).save(stream, "PNG")
    return stream.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
