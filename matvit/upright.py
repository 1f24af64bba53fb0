"""The picture in an opened image: upright, 8-bit sRGB, transparency on white."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_WHITE = (255, 255, 255, 255)
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTER_TURNS = (5, 6, 7, 8)
_STRIP_PIXELS = 1 << 20
_MOST_PROFILE_BYTES = 1 << 22
_SRGB_LEVELS = 2  # of 255, by which the many versions of sRGB differ
_PROFILES = {"RGB": b"RGB ", "RGBA": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}


def upright_rgb(image: Image.Image) -> Image.Image:
    """Bring an opened image to 8-bit sRGB: orientation applied, transparency on white.

    An embedded colour profile is converted; one that is damaged, or for other colours than the
    image has, counts as none.

    Raises:
        ValueError: If gray values are not finite. Pillow raises more if the file is damaged.
    """
    image.load()
    turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


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
