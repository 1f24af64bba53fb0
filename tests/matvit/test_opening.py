"""Ways to name an image, and what is said of anything else."""

from __future__ import annotations

import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from matvit import Preprocess, preprocess, readable_suffixes

SMALL = Preprocess(img_size=8)


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_an_image_may_be_named_in_any_way(photo):
    expected, data = SMALL.pixels(photo), photo.read_bytes()
    with Image.open(photo) as image, photo.open("rb") as file:
        pixels = np.asarray(image)
        for source in (
            *(str(photo), data, bytearray(data), memoryview(data), file, io.BytesIO(data)),
            *(image, image.convert("RGBA"), pixels, pixels[::1], pixels.copy(order="F")),
        ):
            assert np.array_equal(SMALL.pixels(source), expected), type(source)
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(SMALL.pixels(gray), np.stack([gray] * 3, axis=-1))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            None,
            "expected a path, the bytes of a file, a file, a Pillow image or an array, got No",
        ),
        (7, "Pillow image or an array, got int"),
        ([[0, 1]], "or an array, got list"),
        (io.StringIO("text"), "the file is open for text; open it with mode 'rb'"),
        (io.BytesIO(), "the file is empty"),
        (np.zeros((8, 8, 3)), r"expected an array of uint8.* got float64 \(8, 8, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), r"got uint8 \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), "it has no pixels"),
        (np.uint8(3), "or an array, got uint8"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(source, message):
    with pytest.raises(ValueError, match=f"^not a readable image: [^\n]*{message}[^\n]*$"):
        SMALL.pixels(source)


def test_a_plug_in_is_asked_for_formats_that_pillow_does_not_read(monkeypatch):
    Image.init()
    asked = []
    plug_in = types.ModuleType("pillow_heif")
    plug_in.register_heif_opener = lambda: (
        asked.append(True), Image.OPEN.setdefault("HEIF", Image.OPEN["PNG"]),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pillow_heif", plug_in)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    for name in ("_formats", "readable_suffixes"):
        getattr(preprocess, name).cache_clear()
    try:
        assert {".heic", ".heif", ".hif"} <= readable_suffixes()
        assert asked
    finally:
        for name in ("_formats", "readable_suffixes"):
            getattr(preprocess, name).cache_clear()


def test_heic_is_read_where_its_plug_in_is(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    assert ".heic" in readable_suffixes()
    image = Image.new("RGB", (64, 64), (200, 30, 90))
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=95)
    assert np.abs(SMALL.pixels(stream.getvalue()).astype(int) - (200, 30, 90)).max() <= 4
