"""Images that ask and images that are found, as a browser gets them: small, and kept as bytes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from time import perf_counter
from typing import TypeVar

import numpy as np
from cachetools import LRUCache
from jaxtyping import UInt8
from msgspec.structs import replace
from PIL import Image

from indexing import IndexedImages
from matvit import Preprocess, opened_upright, read_dimensions

MAX_UPLOAD_BYTES = 20_000_000

MAX_UPLOAD_PIXELS = 51_000_000
"""What cameras and telephones of 50 megapixels take; about a gigabyte while it is decoded."""

SIDE = 224
"""Most pixels per side of a thumbnail: sharp at the size it is shown, on most screens."""

KEPT_BYTES = 64_000_000
"""Thumbnails of one index that are kept: about five thousand."""

SIGHTS_BYTES = 16_000_000
"""Sights that are kept: about a hundred."""

_QUALITY, _QUALITY_OF_SMALL = 88, 95
_SEEN_SIDE = 128
_JPEG, _SMALL_BYTES = b"\xff\xd8\xff", 20_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(LRUCache[K, V]):
    """A cache that threads share; what was used least recently goes first."""

    def __init__(self, limit: int, size: Callable[[V], int] | None = None) -> None:
        super().__init__(limit, size)
        self._lock = Lock()

    def made(self, key: K, make: Callable[[], V]) -> V:
        """Return what is kept under `key`, or make it.

        Two threads that miss at once both make it; nobody waits for the other.
        """
        with self._lock:
            if key in self:
                return self[key]
        value = make()
        with self._lock, suppress(ValueError):  # too large to be kept
            self[key] = value
        return value


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


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What a query looks like.

    Attributes:
        whole: A JPEG file of all of it.
        seen: A PNG file of what the encoder sees, every pixel a square.
        pixels: The same as the encoder gets it.
    """

    whole: bytes
    seen: bytes
    pixels: UInt8[np.ndarray, "height width 3"]

    @property
    def bytes(self) -> int:
        """What keeping it costs."""
        return len(self.whole) + len(self.seen) + self.pixels.nbytes


class Sights:
    """Decodes queries, each once, however often the page is drawn again.

    One at a time: a large image takes much memory while it is decoded, and two visitors must not
    make it twice as much.

    Args:
        preprocess: How the encoder looks at an image.
        kept_bytes: Most that is kept.
    """

    def __init__(self, preprocess: Preprocess, kept_bytes: int = SIGHTS_BYTES) -> None:
        self._preprocess = preprocess
        self._kept: Kept[str, Sight] = Kept(kept_bytes, lambda sight: sight.bytes)
        self._one_at_a_time = Lock()

    def of(self, query: Query) -> Sight:
        """Look at a query.

        Raises:
            ValueError: If it cannot be read, or has too many pixels.
        """
        return self._kept.made(query.digest, lambda: self._in_turn(query))

    @property
    def used_bytes(self) -> int:
        """What is kept now."""
        return int(self._kept.currsize)

    def _in_turn(self, query: Query) -> Sight:
        with self._one_at_a_time:  # somebody may have looked at it in the meantime
            return self._kept.made(query.digest, lambda: self._look(query.data))

    def _look(self, data: bytes) -> Sight:
        pixels = self._preprocess.pixels(data)
        return Sight(whole=portrait(data), seen=as_seen(pixels), pixels=pixels)


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
        self, index: IndexedImages, preprocess: Preprocess, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._index, self._preprocess = index, preprocess
        self._kept: Kept[int, Picture] = Kept(kept_bytes, lambda picture: picture.bytes)

    def of(self, number: int) -> Picture:
        """Return the thumbnail of the image with this id.

        Raises:
            KeyError: If the index has no such image.
        """
        return self._kept.made(number, lambda: self._read(number))

    @property
    def used_bytes(self) -> int:
        """What is kept now."""
        return int(self._kept.currsize)

    def _read(self, number: int) -> Picture:
        start = perf_counter()
        try:
            original = self._index.image_bytes(number)
            fetch_ms = 1000 * (perf_counter() - start)
            return Picture(data=thumbnail(original, self._preprocess), fetch_ms=fetch_ms)
        except (OSError, ValueError):
            return Picture(data=None, fetch_ms=1000 * (perf_counter() - start))


def stored_query(index: IndexedImages, number: int) -> Query:
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
        name=index.path_of(row),
        id=number,
        label=names[label] if names and label >= 0 else None,
    )


def uploaded_query(name: str, data: bytes, label: str | None = None) -> Query:
    """Ask with a file that somebody sent, or that is none of the index.

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
    return Query(data=data, name=name, label=label)


def thumbnail(data: bytes, preprocess: Preprocess, side: int = SIDE) -> bytes:
    """Make a square JPEG of the part of an image that its encoder looks at.

    A small image is not enlarged: the browser does that. A small square JPEG is its own thumbnail.

    Raises:
        ValueError: If the image cannot be read, or has too many pixels.
    """
    width, height = read_dimensions(data)
    is_whole = width == height <= side and preprocess.crop_pct == 1
    if is_whole and data.startswith(_JPEG) and len(data) <= _SMALL_BYTES:
        return data
    side = min(side, width, height)
    return _jpeg(Image.fromarray(replace(preprocess, img_size=side).pixels(data)))


def portrait(data: bytes, side: int = 2 * SIDE) -> bytes:
    """Make a JPEG of a whole image, shrunk to `side` at its longer side.

    Args:
        data: A file that was read as an image before, and was not too large.
        side: Pixels.
    """
    with opened_upright(data, 2 * side) as (whole, _, _):
        scale = min(1.0, side / max(whole.size))
        size = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
        return _jpeg(whole.resize(size, Image.Resampling.BICUBIC))


def as_seen(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Make a PNG in which every pixel that an encoder sees is a square, the seams left sharp."""
    times = max(1, _SEEN_SIDE // len(pixels))
    stream = io.BytesIO()
    Image.fromarray(pixels.repeat(times, axis=0).repeat(times, axis=1)).save(
        stream, "PNG", compress_level=1
    )
    return stream.getvalue()


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


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    if max(image.size) < SIDE:  # it will be looked at enlarged
        image.save(stream, "JPEG", quality=_QUALITY_OF_SMALL, subsampling=0)
    else:
        image.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
