"""From an image file to the pixels an encoder sees: the one place where that is decided.

Corpus, query and training all come through here, so the two sides of a search cannot drift
apart. The settings and the version of this code travel with every checkpoint and every index as
a fingerprint.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import warnings
from functools import cache
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from matvit.files import is_exhaustion, read_file

ImageLike = str | Path | bytes | Image.Image

DECODING_VERSION = 1
"""Raised whenever the same file would come out as other pixels; part of the fingerprint."""

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded (Pillow's own limit for an error)."""

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
_WHITE = (255, 255, 255, 255)


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
        """Read an image: orientation applied, transparency on white, first frame, RGB, resized.

        Args:
            source: Path, the bytes of a file, or an opened Pillow image.

        Raises:
            FileNotFoundError: If `source` is a path where nothing is.
            ValueError: If it cannot be read as an image; the message says why.
        """
        if isinstance(source, (str, Path)) and not Path(source).exists():
            raise FileNotFoundError(f"no such image: {source}")
        try:
            with _QUIET_PILLOW:
                return self._decode(source)
        except Exception as error:  # a damaged file makes Pillow raise almost anything
            if is_exhaustion(error):
                raise
            raise _unreadable(error) from error

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

    def _decode(self, source: ImageLike) -> Decoded:
        image = source if isinstance(source, Image.Image) else _open(source)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")
        if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # orientations that turn by 90 degrees
            width, height = height, width
        if image is not source:  # somebody else's image is left as it is
            # A large JPEG is decoded at a fraction of its size, still twice what is needed.
            side = math.ceil(2 * self.img_size / self.crop_pct)
            image.draft("RGB", (side, side))
        return Decoded(self._resize(upright_rgb(image)), width, height)

    def _resize(self, image: Image.Image) -> NDArray[np.uint8]:
        size = (self.img_size, self.img_size)
        method = Image.Resampling[self.interpolation.upper()]
        border = (1 - self.crop_pct) / 2
        if self.fit == "squash":
            width, height = image.size
            kept = (border * width, border * height, (1 - border) * width, (1 - border) * height)
            return np.array(image.resize(size, method, box=kept))
        return np.array(ImageOps.fit(image, size, method, bleed=border))


def read_dimensions(data: bytes) -> tuple[int, int]:
    """Read width and height of a file, before orientation, from its header: nothing is decoded.

    Raises:
        ValueError: If it is not an image; the message says why.
    """
    try:
        with _QUIET_PILLOW, _open(data) as image:
            return image.size
    except Exception as error:
        raise _unreadable(error) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Bring an opened image to 8-bit RGB: orientation applied, transparency on white.

    This is what a person should be shown, too, so that both see the same picture.

    Raises:
        ValueError: If gray values are not finite. Pillow raises more if the file is damaged.
    """
    return _to_rgb(ImageOps.exif_transpose(image))


def _unreadable(error: Exception) -> ValueError:
    """Say why, without the `<_io.BytesIO object at 0x...>` that Pillow puts into its messages."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"not a readable image: {reason.split(' <_io')[0]}")


@cache
def _formats() -> tuple[str, ...]:
    """Formats worth trusting with unknown files (no EPS: it starts an interpreter)."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(source: str | Path | bytes) -> Image.Image:
    data = source if isinstance(source, bytes) else read_file(source).data
    if not data:
        raise ValueError("the file is empty")
    return Image.open(io.BytesIO(data), formats=_formats())


def _to_rgb(image: Image.Image) -> Image.Image:
    """Bring any Pillow mode to 8-bit RGB without clipping and without losing transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        return _gray_to_rgb(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def _gray_to_rgb(values: NDArray[Any]) -> Image.Image:
    """Scale gray values of 16 bits or more, or floats, to 8 bits: `convert` would clip them."""
    if values.dtype.kind == "f":
        if not math.isfinite(float(values.sum())):
            raise ValueError("gray values are not finite")
        scaled = values * 255 if values.max() <= 1 else values
    else:
        scaled = values.astype(np.int64) >> 8
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert("RGB")


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
