"""From an image file to the pixels an encoder sees: the one place where that is decided.

Corpus, query and training all come through here, so the two sides of a search cannot drift
apart. The settings and the version of this code travel with every checkpoint and every index as
a fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from matvit.opening import ImageLike, opened_upright

DECODING_VERSION = 1
"""Raised whenever the same file would come out as other pixels; part of the fingerprint.

Converting embedded colour profiles did not raise it: a file without one comes out as before, so
that indexes and encoders from before stay valid. `COLOURS` tells them apart.
"""

COLOURS = 2
"""How colours are read: 2 converts embedded profiles to sRGB, 1 left them aside."""


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
