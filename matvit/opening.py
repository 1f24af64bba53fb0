"""Opening image files that somebody else made: upright, in sRGB, within bounds of memory and time.

What comes out is what a person should be shown, too, so that both see the same picture.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from matvit.bounds import MAX_PIXELS, MEMORY, check_beginning, check_time, memory_to_decode
from matvit.files import MAX_BYTES, is_exhaustion, read_file
from matvit.upright import ORIENTATION, QUARTER_TURNS, upright_rgb

ImageLike = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[np.uint8]
"""A path, the bytes of a file, a file open for reading bytes, a Pillow image, or an array of uint8
in (height, width) or (height, width, 3 or 4)."""

_SUFFIXES = {  # of formats worth trusting with unknown files (no EPS: it starts an interpreter)
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "JPEG2000": (".jp2",),
    "ICO": (".ico",),
}
_WANTED = "expected a path, the bytes of a file, a file, a Pillow image or an array"


class Upright(NamedTuple):
    """An image as it should be seen.

    Attributes:
        image: Pillow image in mode RGB; it may be smaller than the original.
        width: Of the original in pixels, after orientation.
        height: The same.
    """

    image: Image.Image
    width: int
    height: int


@contextmanager
def opened_upright(source: ImageLike, side: int) -> Iterator[Upright]:
    """Read an image: orientation applied, colours in sRGB, transparency on white, first frame.

    Only for as long as it is open does its memory count among what all threads may take up.

    Args:
        source: An image, in any of these ways; a Pillow image is left as it is.
        side: A large JPEG is decoded at a fraction of its size, with at least so many pixels a
            side.

    Raises:
        FileNotFoundError: If `source` is a path where nothing is.
        ValueError: If it cannot be read as an image, or only with more memory or time than an
            image may take; the message says why.
    """
    if isinstance(source, (str, Path)) and not Path(source).exists():
        raise FileNotFoundError(f"no such image: {source}")
    with _readable(), _QUIET_PILLOW:
        data = b"" if isinstance(source, (Image.Image, np.ndarray)) else _bytes_of(source)
        image = _of_array(source) if isinstance(source, np.ndarray) else source
        image = image if isinstance(image, Image.Image) else _open(data)
        width, height = image.size
        if not width * height:
            raise ValueError("it has no pixels")
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")
        if image is not source:
            image.draft("RGB", (side, side))
        check_time(image, data)
        with MEMORY.hold(memory_to_decode(image, width * height, data)):
            rgb = upright_rgb(image)
            if image.size == (width, height):
                width, height = rgb.size
            elif image.getexif().get(ORIENTATION) in QUARTER_TURNS:
                width, height = height, width
            yield Upright(rgb, width, height)


def read_dimensions(data: bytes) -> tuple[int, int]:
    """Read width and height of a file, before orientation, from its header: nothing is decoded.

    Raises:
        ValueError: If it is not an image; the message says why.
    """
    with _readable(), _QUIET_PILLOW, _open(data) as image:
        return image.size


@cache
def readable_suffixes() -> frozenset[str]:
    """Endings of files that are taken for images, in small letters, each with its dot."""
    return frozenset(suffix for name in _formats() for suffix in _SUFFIXES[name])


# --- opening ----------------------------------------------------------------------------------


@cache
def _formats() -> tuple[str, ...]:
    """Formats that Pillow reads here, by itself or with a plug-in."""
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in _SUFFIXES if name in Image.OPEN)


def _bytes_of(source: str | Path | bytes | bytearray | memoryview | BinaryIO) -> bytes:
    """Read a file, whichever way it was named.

    Raises:
        ValueError: If it is empty, or nothing that names a file.
    """
    if isinstance(source, (str, Path)):
        data = read_file(source).data
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif callable(getattr(source, "read", None)):
        data = source.read(MAX_BYTES)
    else:
        raise ValueError(f"{_WANTED}, got {type(source).__name__}")
    if not isinstance(data, bytes):
        raise ValueError("the file is open for text; open it with mode 'rb'")
    if not data:
        raise ValueError("the file is empty")
    return data


def _of_array(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    ):
        raise ValueError(
            "expected an array of uint8, (height, width) or (height, width, 3 or 4), got "
            f"{pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(pixels)


def _open(data: bytes) -> Image.Image:
    check_beginning(data)
    return Image.open(io.BytesIO(data), formats=_formats())


@contextmanager
def _readable() -> Iterator[None]:
    """Turn whatever goes wrong into one kind of error, unless the machine is at fault."""
    try:
        yield
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        if is_exhaustion(error):
            raise
        # Without the `<_io.BytesIO object at 0x...>` that Pillow puts into its messages.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"not a readable image: {reason.split(' <_io')[0]}") from error


# --- warnings ---------------------------------------------------------------------------------


class QuietPillow:
    """Ignores Pillow's warnings while any thread is inside.

    Where warnings are errors a file would otherwise be unreadable that can be read elsewhere. The
    filters belong to all threads, so the first one in changes them and the last one out puts
    them back.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._saved: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._saved is not None:
                self._saved.__exit__(None, None, None)
                self._saved = None


_QUIET_PILLOW = QuietPillow()
