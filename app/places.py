"""Real photographs for the demo: places in them, each seen as many views.

The photographs come inside scikit-image, which the `demo` extra installs. Each is cut into places
that lie beside each other and overlap; a place is a class. A view shows its place from a little
aside, in another light, blurred, noisy, or with something in the way. Two views are never alike,
so that finding a place again is no matter of comparing pixels.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from matvit import naming, progress_of

PHOTOGRAPHS = {
    "astronaut": "astronaut.png", "cameraman": "camera.png", "cat": "chelsea.png",
    "coffee": "coffee.png", "coins": "coins.png", "galaxies": "hubble_deep_field.jpg",
    "handwriting": "text.png", "moon": "moon.png", "motorcycle": "motorcycle_left.png",
    "print": "page.png", "retina": "retina.jpg", "rocket": "rocket.jpg", "tissue": "ihc.png",
}  # fmt: skip
"""Name of each photograph, and its file in scikit-image.

Its textures (bricks, grass, gravel) are left out: one part of a lawn is like another.
"""

VIEWS = 15
"""Views of a place."""

SIDE = 192
"""Pixels per side of a view."""

_LONGEST = 640  # of a photograph, in pixels; larger ones are reduced, or places would be empty
_PLACE = 200  # pixels of a photograph per side of a place
_SPACING = 150  # pixels from a place to the next, about
_QUALITY = 90

_SHIFT, _ZOOM, _SLANT = 0.05, 0.1, 0.05  # in sides of a place, at most
_GAMMA, _TINT, _SHADE = 0.3, 0.06, 0.3  # exponent, as its logarithm; colour; light across a view
_BLUR, _NOISE = 1.5, 0.03  # pixels of a view; of its brightest value
_HIDDEN, _OFTEN_HIDDEN = 0.3, 0.5  # of the side, at most; of the views
_SQUARE = np.array([(-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)])


def write_places(
    folder: Path,
    photographs: Collection[str] = tuple(PHOTOGRAPHS),
    *,
    views: int = VIEWS,
    progress: bool = False,
) -> Path:
    """Write every view of every place as a JPEG file, one folder per place, and return the folder.

    The same pictures each time; files that are there already are left alone.

    Raises:
        FileNotFoundError: If scikit-image is not installed.
    """
    source = _find_photographs()

    def write(name: str) -> None:
        _write_photograph(source / PHOTOGRAPHS[name], name, folder, views)

    with (
        progress_of("cutting up", len(photographs), unit="photographs", shown=progress) as told,
        ThreadPoolExecutor(os.cpu_count()) as pool,  # Pillow lets go of the interpreter
    ):
        for _ in pool.map(write, photographs):
            told.update()
    return folder


def _write_photograph(file: Path, name: str, folder: Path, views: int) -> None:
    with Image.open(file) as opened:
        photograph = opened.convert("RGB")
    photograph.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    for number, place in enumerate(places_of(photograph.size), start=1):
        for view in range(views):
            rng = np.random.default_rng([zlib.crc32(name.encode()), number, view])
            _write_view(folder / f"{name} {number}" / f"{view:02}.jpg", photograph, place, rng)


def _write_view(
    path: Path,
    photograph: Image.Image,
    place: tuple[float, float, float],
    rng: np.random.Generator,
) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with naming(path):
        view_of(photograph, place, rng).save(partial, "JPEG", quality=_QUALITY)
    partial.replace(path)


def _find_photographs() -> Path:
    """Find scikit-image's photographs without importing it, which takes seconds."""
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "the demo's photographs come with scikit-image, which is not installed: "
            "pip install 'matvit-retrieval[demo]', or show your own with --images FOLDER"
        )
    return Path(package.origin).parent / "data"


def places_of(size: tuple[int, int]) -> list[tuple[float, float, float]]:
    """Left, top and side of every place of a photograph of that width and height, row by row."""
    side = min(*size, _PLACE)
    lefts, tops = (
        np.linspace(0, length - side, max(1, round(length / _SPACING))) for length in size
    )
    return [(float(left), float(top), float(side)) for top in tops for left in lefts]


def view_of(
    photograph: Image.Image, place: tuple[float, float, float], rng: np.random.Generator
) -> Image.Image:
    """See a place from a little aside, in another light, with something in the way."""
    left, top, side = place
    middle = np.array([left, top]) + side / 2 + rng.uniform(-_SHIFT, _SHIFT, 2) * side
    corners = _SQUARE * rng.uniform(1 - _ZOOM, 1 + _ZOOM) + rng.uniform(-_SLANT, _SLANT, (4, 2))
    quad = np.clip(middle + corners * side, 0, photograph.size).ravel().tolist()
    view = photograph.transform((SIDE, SIDE), Image.Transform.QUAD, quad, Image.Resampling.BICUBIC)
    if rng.uniform() < _OFTEN_HIDDEN:
        spot, radii = rng.uniform(0, SIDE, 2), rng.uniform(0.3, 1, 2) * _HIDDEN / 2 * SIDE
        colour = photograph.getpixel(tuple(rng.integers(0, photograph.size).tolist()))
        ImageDraw.Draw(view).ellipse([*(spot - radii), *(spot + radii)], fill=colour)
    view = view.filter(ImageFilter.GaussianBlur(_BLUR * rng.uniform() ** 2))
    return _in_other_light(view, rng)


def _in_other_light(view: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Make it brighter or darker, warmer or colder, let light fall in from a side, add noise."""
    gamma, tint = np.exp(rng.uniform(-_GAMMA, _GAMMA)), rng.uniform(1 - _TINT, 1 + _TINT, 3)
    curves = 255 * np.linspace(0, 1, 256) ** gamma * tint[:, None]
    pixels = np.asarray(view.point(curves.clip(0, 255).round().ravel().tolist()), np.float32)
    ramp = np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)
    across, down = rng.uniform(-_SHADE, _SHADE, 2).astype(np.float32)
    shade = 1 + across * ramp + down * ramp[:, None]
    noise = rng.standard_normal((SIDE, SIDE), np.float32) * np.float32(_NOISE * rng.uniform() ** 2)
    pixels = pixels * shade[..., None] + 255 * noise[..., None]
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
