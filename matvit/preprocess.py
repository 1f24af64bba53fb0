"""From an image file to the pixels an encoder sees: the one place where that is decided.

Corpus, query and training all come through here, so the two sides of a search cannot drift
apart. The settings and the version of this code travel with every checkpoint and every index as
a fingerprint. Files that somebody else made are opened upright, in sRGB, within bounds of memory
and time; what a person is shown comes through here too, so that both see the same picture.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from matvit.bounds import MAX_PIXELS, MEMORY, check_beginning, check_time, memory_to_decode
from matvit.files import MAX_BYTES, is_exhaustion, read_file
from matvit.upright import ORIENTATION, QUARTER_TURNS, upright_rgb

DECODING_VERSION = 1
"""Raised whenever the same file would come out as other pixels; part of the fingerprint.

Converting embedded colour profiles did not raise it: a file without one comes out as before, so
that indexes and encoders from before stay valid. `COLOURS` tells them apart.
"""

COLOURS = 2
"""How colours are read: 2 converts embedded profiles to sRGB, 1 left them aside."""

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
_PLUGINS = ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Avif", "Jpeg2K", "Ico")
_WANTED = "expected a path, the bytes of a file, a file, a Pillow image or an array"


class Decoded(NamedTuple):
    """An image as the encoder sees it, and how large it was.

    Attributes:
        pixels: uint8, shape (img_size, img_size, 3), RGB.
        width: Original width in pixels, after orientation.
        height: Original height in pixels, after orientation.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int


class Preprocess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image becomes the input of an encoder.

    Args:
        img_size: Side of the square input in pixels; `image_size` in files.
        fit: `"crop"` scales the shorter side and keeps the centre, `"squash"` keeps everything
            and gives up the aspect ratio.
        interpolation: `"bicubic"` or `"bilinear"`, both antialiased.
        mean: Subtracted per channel, on the scale 0..1.
        std: Divided by per channel, on the scale 0..1.
        crop_pct: Share of each side of the image (with `"crop"`, of the shorter one) that is kept,
            around the centre; some encoders were trained to see less than the whole.
    """

    img_size: Annotated[int, msgspec.Meta(le=1 << 14)] = msgspec.field(
        default=224, name="image_size"
    )
    fit: Literal["crop", "squash"] = "crop"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            exact = tuple(float(value) for value in getattr(self, name))
            msgspec.structs.force_setattr(self, name, exact)
        if self.img_size < 1:
            raise ValueError(f"img_size must be at least 1, got {self.img_size}")
        if self.fit not in ("crop", "squash"):
            raise ValueError(f"fit must be 'crop' or 'squash', got {self.fit!r}")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(
                f"interpolation must be 'bicubic' or 'bilinear', got {self.interpolation!r}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std need three values each, and std above 0")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be above 0 and at most 1, got {self.crop_pct}")

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when any setting or the decoding code changes."""
        spec = json.dumps([DECODING_VERSION, self.to_dict()], sort_keys=True)
        return hashlib.sha256(spec.encode()).hexdigest()[:16]

    def decode(self, source: ImageLike) -> Decoded:
        """Read an image: upright, in sRGB, transparency on white, first frame, resized.

        Args:
            source: Path, the bytes of a file, a file open for reading bytes, a Pillow image, or an
                array of uint8 in (height, width, 3).

        Raises:
            FileNotFoundError: If `source` is a path where nothing is.
            ValueError: If it cannot be read as an image, or only with more memory or time than an
                image may take; the message says why.
        """
        # A large JPEG is decoded at a fraction of its size, still twice what is needed.
        side = math.ceil(2 * self.img_size / self.crop_pct)
        with opened_upright(source, side) as (image, width, height):
            return Decoded(self._resize(image), width, height)

    def pixels(self, source: ImageLike) -> NDArray[np.uint8]:
        """Read an image as uint8 RGB of shape (img_size, img_size, 3); see `decode`."""
        return self.decode(source).pixels

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values.

        `crop_pct` came later: it is left out where it changes nothing, so that the fingerprints
        of earlier encoders and indexes stay what they are.
        """
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in msgspec.to_builtins(self).items()
        }
        if self.crop_pct == 1:
            del values["crop_pct"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Read the settings back.

        Raises:
            ValueError: If a key is unknown, or a value of the wrong kind or size.
        """
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"not the settings of a preprocessing: {error}") from error

    def _resize(self, image: Image.Image) -> NDArray[np.uint8]:
        size = (self.img_size, self.img_size)
        method = Image.Resampling[self.interpolation.upper()]
        border = (1 - self.crop_pct) / 2
        if self.fit == "squash":
            width, height = image.size
            kept = (border * width, border * height, (1 - border) * width, (1 - border) * height)
            return np.array(image.resize(size, method, box=kept))
        return np.array(ImageOps.fit(image, size, method, bleed=border))


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
        with MEMORY.hold(memory_to_decode(image, width * height, data)), _freeing(source) as mine:
            mine.append(image)
            mine.append(rgb := upright_rgb(image))
            if image.size == (width, height):
                width, height = rgb.size
            elif image.getexif().get(ORIENTATION) in QUARTER_TURNS:
                width, height = height, width
            yield Upright(rgb, width, height)


@contextmanager
def _freeing(source: object) -> Iterator[list[Image.Image]]:
    """Free images at the end, though somebody may still know them; not the one that was given."""
    images: list[Image.Image] = []
    try:
        yield images
    finally:
        for image in images:
            if image is not source:
                image.close()


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
    for plugin in _PLUGINS:  # `Image.init` would import all forty
        with suppress(ImportError):
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
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
