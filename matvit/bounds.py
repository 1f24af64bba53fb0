"""What an image may cost: a small file that would take gigabytes or minutes is refused."""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Condition

from PIL import ExifTags, Image

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded (Pillow's own limit for an error)."""

MAX_MEMORY = 1_000_000_000
"""Bytes that may be taken up by decoding, by all threads together; what needs more is refused."""

# Bytes per pixel: of an image in memory, and, measured, of decoders beside it.
_TURNED = range(2, 9)  # orientations of EXIF that are not upright already
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2}
_DECODERS = {"WEBP": 14, "AVIF": 12, "HEIF": 12, "JPEG2000": 12}
_RGB, _FLOAT = 4, 16
_COEFFICIENT = 2
_LARGE = 1 << 25
_KEPT = 1 << 26  # bytes that a thread may keep of what was freed, for its next image

_MOST_SCANS = 100  # of a JPEG; encoders make 10
_MOST_SEGMENTS, _MOST_FILLING = 1 << 16, 1 << 20  # before the first scan, and bytes between them
_MOST_CHUNKS = 1 << 18  # of a PNG
_MOST_ICON_PIXELS = 1 << 22  # Pillow decodes icons when it opens them
_MOST_SLOW_BYTES = 1 << 24  # of what Pillow decodes in Python, or puts together piece by piece
_SLOW = ("ppm_plain", "bmp_rle")
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_SCAN = b"\xff\xda"
_JPEG_IN_TIFF, _PARTS_OF_TIFF = ("jpeg", "tiff_jpeg"), (273, 324)


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
            if needed > _KEPT:
                _give_back()
            with self._freed:
                self._held -= needed
                self._freed.notify_all()

    def reset(self) -> None:
        """Forget threads that a forked process does not have."""
        self._freed, self._held = Condition(), 0


def _give_back() -> None:
    """Return to the system what was freed: glibc keeps it, for each thread its own."""
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another library of C, or Windows
        return None
    return trim


MEMORY = _Memory()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=MEMORY.reset)


def memory_to_decode(image: Image.Image, original: int, data: bytes) -> int:
    """Say how many bytes it takes to decode an image, at most.

    Args:
        image: Opened, not decoded.
        original: Pixels in the file; `image` may be drafted at fewer.
        data: The file.
    """
    pixels = image.width * image.height
    stored = _STORED.get(image.mode, _RGB)
    each = stored + _DECODERS.get(image.format or "", 0)
    if image.mode != "RGB" or image.info.get("icc_profile"):
        each += _RGB
    # A PNG would be decoded to look for what may stand behind its pixels.
    if Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in _TURNED:
        each += _RGB
    if image.mode == "F":
        each += _FLOAT
    # A JPEG in several scans is in memory at its original size, whatever it is drafted at.
    is_sketched = image.format in ("JPEG", "MPO") and (
        "progressive" in image.info or (original > _LARGE and _has_more_scans(data, 1))
    )
    coefficients = _COEFFICIENT * len(image.getbands()) if is_sketched else 0
    return len(data) + pixels * each + original * coefficients


def check_beginning(data: bytes) -> None:
    """Refuse a file that takes long to open.

    Raises:
        ValueError: If there is more before its image than any file needs.
    """
    if data.startswith(b"\x89PNG") and _has_more_chunks(data, _MOST_CHUNKS):
        raise ValueError(f"the PNG has more than {_MOST_CHUNKS:,} chunks")
    if data.startswith(b"\xff\xd8") and _is_hollow(data):
        raise ValueError("the JPEG has no image for too long")
    if data.startswith(b"\0\0\1\0") and _pixels_in_icon(data) > _MOST_ICON_PIXELS:
        raise ValueError(f"the icon has more than {_MOST_ICON_PIXELS:,} pixels")


def check_time(image: Image.Image, data: bytes) -> None:
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


def _pixels_in_icon(data: bytes) -> int:
    """How large the largest picture in an icon is, whatever the list of them says."""
    most, entries = 0, int.from_bytes(data[4:6], "little")
    for entry in range(6, 6 + 16 * entries, 16):
        start = int.from_bytes(data[entry + 12 : entry + 16], "little")
        is_png = data[start : start + 4] == b"\x89PNG"
        at = start + (16 if is_png else 4)
        sides = data[at : at + 8].ljust(8, b"\0")
        width, height = struct.unpack(">II" if is_png else "<II", sides)
        most = max(most, width * height)
    return most


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
