"""Opening image files that somebody else made: upright, in sRGB, within bounds of memory and time.

What comes out is what a person should be shown, too, so that both see the same picture.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, partial
from pathlib import Path
from threading import Condition, Lock
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from matvit.files import MAX_BYTES, is_exhaustion, read_file

ImageLike = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[np.uint8]
"""A path, the bytes of a file, a file open for reading bytes, a Pillow image, or an array of uint8
in (height, width) or (height, width, 3 or 4)."""

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded (Pillow's own limit for an error)."""

MAX_MEMORY = 1_000_000_000
"""Bytes that may be taken up by decoding, by all threads together; what needs more is refused."""

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
_WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)

# Bytes per pixel: of an image in memory, and, measured, of decoders beside it.
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2}
_DECODERS = {"WEBP": 14, "AVIF": 12, "HEIF": 12, "JPEG2000": 12}
_RGB, _FLOAT = 4, 16
_COEFFICIENT = 2
_LARGE = 1 << 25
_STRIP_PIXELS = 1 << 20

_MOST_SCANS = 100  # of a JPEG; encoders make 10
_MOST_SEGMENTS, _MOST_FILLING = 1 << 16, 1 << 20  # before the first scan, and bytes between them
_MOST_CHUNKS = 1 << 18  # of a PNG
_MOST_SLOW_BYTES = 1 << 24  # of what Pillow decodes in Python, or puts together piece by piece
_SLOW = ("ppm_plain", "bmp_rle")
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_SCAN = b"\xff\xda"
_JPEG_IN_TIFF, _PARTS_OF_TIFF = ("jpeg", "tiff_jpeg"), (273, 324)

_MOST_PROFILE_BYTES = 1 << 22
_SRGB_LEVELS = 2  # of 255, by which the many versions of sRGB differ
_PROFILES = {"RGB": b"RGB ", "RGBA": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}


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
        _check_time(image, data)
        with _MEMORY.hold(_memory(image, width * height, data)):
            rgb = upright_rgb(image)
            if image.size == (width, height):
                width, height = rgb.size
            elif image.getexif().get(_ORIENTATION) in _QUARTER_TURNS:
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


def upright_rgb(image: Image.Image) -> Image.Image:
    """Bring an opened image to 8-bit sRGB: orientation applied, transparency on white.

    An embedded colour profile is converted; one that is damaged, or for other colours than the
    image has, counts as none.

    Raises:
        ValueError: If gray values are not finite. Pillow raises more if the file is damaged.
    """
    image.load()
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


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
    if data.startswith(b"\x89PNG") and _has_more_chunks(data, _MOST_CHUNKS):
        raise ValueError(f"the PNG has more than {_MOST_CHUNKS:,} chunks")
    if data.startswith(b"\xff\xd8") and _is_hollow(data):
        raise ValueError("the JPEG has no image for too long")
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


# --- bounds -----------------------------------------------------------------------------------


class _Memory:
    """Bytes that all threads share; whoever needs more than is left waits for others."""

    def __init__(self) -> None:
        self._freed, self._held = Condition(), 0

    @contextmanager
    def hold(self, needed: int) -> Iterator[None]:
        """Take some while in a `with` statement.

        Raises:
            ValueError: If it is more than there are.
        """
        if needed > MAX_MEMORY:
            raise ValueError(
                f"it takes {needed / 1e9:.1f} GB to decode, more than the limit of "
                f"{MAX_MEMORY / 1e9:.1f} GB"
            )
        with self._freed:
            self._freed.wait_for(lambda: self._held + needed <= MAX_MEMORY)
            self._held += needed
        try:
            yield
        finally:
            with self._freed:
                self._held -= needed
                self._freed.notify_all()

    def reset(self) -> None:
        """Forget threads that a forked process does not have."""
        self._freed, self._held = Condition(), 0


_MEMORY = _Memory()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_MEMORY.reset)


def _memory(image: Image.Image, original: int, data: bytes) -> int:
    """Say how many bytes it takes to decode an image, at most.

    Args:
        image: Opened, not decoded.
        original: Pixels in the file; `image` may be drafted at fewer.
        data: The file.
    """
    pixels = max(image.width * image.height, _pixels_in_icon(image, data))
    stored = _STORED.get(image.mode, _RGB)
    each = stored + _DECODERS.get(image.format or "", 0)
    if image.mode != "RGB" or image.info.get("icc_profile"):
        each += _RGB
    if image.getexif().get(_ORIENTATION, 1) in _TURNS:
        each += _RGB
    if image.mode == "F":
        each += _FLOAT
    # A JPEG in several scans is in memory at its original size, whatever it is drafted at.
    is_sketched = image.format in ("JPEG", "MPO") and (
        "progressive" in image.info or (original > _LARGE and _has_more_scans(data, 1))
    )
    coefficients = _COEFFICIENT * len(image.getbands()) if is_sketched else 0
    return len(data) + pixels * each + original * coefficients


def _pixels_in_icon(image: Image.Image, data: bytes) -> int:
    """How large the largest picture in an icon is, whatever the list of them says."""
    most = 0
    for entry in image.ico.entry if image.format == "ICO" else ():  # type: ignore[attr-defined]
        head = data[entry.offset : entry.offset + 24]
        if head.startswith(b"\x89PNG"):
            sides = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        else:
            sides = int.from_bytes(head[4:8], "little"), int.from_bytes(head[8:12], "little")
        most = max(most, sides[0] * sides[1])
    return most


def _check_time(image: Image.Image, data: bytes) -> None:
    """Refuse a file that is small but made to take minutes.

    Raises:
        ValueError: If it has more parts than any image needs.
    """
    tiles, tags = getattr(image, "tile", ()), getattr(image, "tag_v2", {})
    if tiles and tiles[0][0] in _SLOW and len(data) > _MOST_SLOW_BYTES:
        raise ValueError(f"it has {len(data):,} bytes in a form that takes minutes to decode")
    most = 0
    if image.format in ("JPEG", "MPO") and _has_more_scans(data, _MOST_SCANS):
        most = _MOST_SCANS
    elif image.info.get("compression") in _JPEG_IN_TIFF:
        most = _MOST_SCANS * sum(len(tags.get(tag, ())) for tag in _PARTS_OF_TIFF)
    if most and data.count(_SCAN) > most:
        raise ValueError(f"the JPEG has more than {most:,} scans")


def _has_more_scans(data: bytes, most: int) -> bool:
    """Whether a JPEG is drawn over in more scans, thumbnails and what follows it aside."""
    at, scans = 2, 0
    if data.count(_SCAN) <= most:
        return False
    while scans <= most and (found := _MARKER.search(data, at)):
        at = found.end()
        if found[0] == b"\xff\xd9":  # the end of the image
            return False
        scans += found[0] == _SCAN
        at += int.from_bytes(data[at : at + 2], "big")
    return scans > most


def _is_hollow(data: bytes) -> bool:
    """Whether so much is between the start of a JPEG and its image that it takes long to skip."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found[0] == _SCAN:
            return False
        if found.start() - at > _MOST_FILLING:
            return True
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return True


def _has_more_chunks(data: bytes, most: int) -> bool:
    """Whether a PNG has more chunks; each takes a while, though it may be empty."""
    at, chunks = 8, 0
    while chunks <= most and at + 8 <= len(data):
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        chunks += 1
    return chunks > most


# --- colours ----------------------------------------------------------------------------------


def _to_rgb(image: Image.Image) -> Image.Image:
    """Bring any Pillow mode to 8-bit sRGB, without clipping and without losing transparency.

    A large image is converted in strips, so that there are not several copies of it.
    """
    profile = image.info.get("icc_profile")
    profile = profile if isinstance(profile, bytes) else b""
    if image.mode == "F":
        image = _from_floats(np.asarray(image))
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    is_plain = image.mode == "RGB" and "transparency" not in image.info
    if is_plain and _to_srgb(profile, "RGB") is None:
        return image
    if height <= rows:
        return _strip_to_rgb(image, profile)
    rgb = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        rgb.paste(_strip_to_rgb(image.crop(box), profile), box)
    return rgb


def _strip_to_rgb(image: Image.Image, profile: bytes) -> Image.Image:
    if image.mode.startswith("I"):
        # Scaled from 16 bits or more: `convert` would clip them.
        scaled = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if has_alpha or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if image.mode in ("L", "LA") and (gray := _to_srgb(profile, "L")) is not None:
            alpha = rgba.getchannel("A")
            rgba = gray(rgba.getchannel("R")).convert("RGBA")
            rgba.putalpha(alpha)
        elif (colours := _to_srgb(profile, "RGBA")) is not None:
            rgba = colours(rgba)
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    if image.mode not in _PROFILES:
        image = image.convert("RGB")
    convert = _to_srgb(profile, image.mode)
    return image.convert("RGB") if convert is None else convert(image)


def _from_floats(values: NDArray[Any]) -> Image.Image:
    """Scale floats to 8 bits; if none is above 1, that is white."""
    if not math.isfinite(float(values.sum())):
        raise ValueError("gray values are not finite")
    scaled = values * 255 if values.max() <= 1 else values
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))


_Conversion = Callable[[Image.Image], Image.Image]


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> _Conversion | None:
    """What turns the colours of a profile into sRGB.

    Args:
        profile: An ICC profile.
        mode: Of the image.

    Returns:
        None if there is nothing to do: no profile, none for such an image, or sRGB itself.
    """
    if not 0 < len(profile) <= _MOST_PROFILE_BYTES or profile[16:20] != _PROFILES.get(mode):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        out = "RGBA" if mode == "RGBA" else "RGB"
        # What makes it fast makes it coarse in the shadows of gray, for which there is a table.
        how = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, out, flags=how)
        changed = transform.apply(palette := _palette(mode))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    difference = np.asarray(changed, dtype=np.int16) - np.asarray(palette.convert(out))
    if mode != "CMYK" and np.abs(difference).max() <= _SRGB_LEVELS:
        return None
    return partial(_by_table, table=changed.tobytes()) if mode == "L" else transform.apply


def _by_table(gray: Image.Image, table: bytes) -> Image.Image:
    coloured = gray.copy()
    coloured.putpalette(table)
    return coloured.convert("RGB")


def _palette(mode: str) -> Image.Image:
    """A few hundred colours, from all corners of a mode."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    return Image.fromarray(grid).convert(mode)


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
