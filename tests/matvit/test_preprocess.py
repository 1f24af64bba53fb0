"""Decoding against pictures whose pixels are known beforehand."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from matvit import preprocess
from matvit import preprocess as module
from matvit.preprocess import Preprocess, QuietPillow

SMALL = Preprocess(img_size=8, fit="squash")


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 8, height: int = 8) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_an_image_of_the_right_size_is_left_alone():
    image = noise()
    pixels = SMALL.pixels(encoded(image))
    assert np.array_equal(pixels, np.asarray(image))
    assert pixels.flags.writeable  # torch warns about memory that it must not write to


def test_path_bytes_and_pillow_image_give_the_same_pixels(tmp_path):
    image = noise(30, 20)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    expected = SMALL.pixels(path)
    for source in (str(path), path.read_bytes(), image):
        assert np.array_equal(SMALL.pixels(source), expected)


def test_crop_keeps_the_centre_and_squash_keeps_everything():
    stripes = np.zeros((8, 24, 3), dtype=np.uint8)
    stripes[:, :8], stripes[:, 8:16], stripes[:, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image = Image.fromarray(stripes)
    assert (Preprocess(img_size=8, fit="crop").pixels(image) == (0, 255, 0)).all()
    squashed = SMALL.pixels(image)
    assert squashed[0, 0, 0] > 200
    assert squashed[0, -1, 2] > 200


def test_orientation_is_applied():
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: show it a quarter turn clockwise
    decoded = SMALL.decode(encoded(image, "JPEG", exif=exif, quality=95))
    assert (decoded.width, decoded.height) == (8, 16)
    assert decoded.pixels[0].mean() > 200 > 50 > decoded.pixels[-1].mean()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_shown_on_white(mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    if mode == "P":
        data = encoded(image.convert("P"), transparency=0)
    else:
        data = encoded(image.convert(mode))
    assert (SMALL.pixels(data) == 255).all()


def test_sixteen_bit_gray_is_scaled_not_clipped():
    gray = np.full((8, 8), 0x8000, dtype=np.uint16)
    assert (SMALL.pixels(encoded(Image.fromarray(gray))) == 0x80).all()
    assert (SMALL.pixels(encoded(Image.fromarray(gray), "TIFF")) == 0x80).all()


@pytest.mark.parametrize(("value", "expected"), [(0.5, 127), (200.0, 200)])
def test_float_gray_is_read_on_either_scale(value, expected):
    gray = Image.fromarray(np.full((8, 8), value, dtype=np.float32))
    assert (SMALL.pixels(encoded(gray, "TIFF")) == expected).all()


def test_float_gray_with_nan_is_refused():
    gray = Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="not a readable image: gray values are not finite"):
        SMALL.pixels(encoded(gray, "TIFF"))


def test_cmyk_gray_palette_and_bilevel_become_rgb():
    for mode in ("CMYK", "L", "P", "1"):
        data = encoded(noise().convert(mode), "TIFF")
        assert SMALL.pixels(data).shape == (8, 8, 3)


def test_an_animation_shows_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (SMALL.pixels(data) == (255, 0, 0)).all()


def test_a_large_jpeg_is_decoded_small_and_reports_its_size():
    image = noise(64, 48).resize((1600, 1200))
    decoded = Preprocess(img_size=32).decode(encoded(image, "JPEG"))
    assert (decoded.width, decoded.height) == (1600, 1200)
    difference = np.abs(decoded.pixels.astype(int) - Preprocess(img_size=32).pixels(image))
    assert difference.mean() < 3


def test_an_opened_image_is_left_as_it_is():
    with Image.open(io.BytesIO(encoded(noise(64, 48).resize((1600, 1200)), "JPEG"))) as image:
        SMALL.decode(image)
        assert image.size == (1600, 1200)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def _bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is a text file", "cannot identify image file$"),
        (encoded(noise(64, 64), "JPEG")[:700], "truncated"),
        (encoded(noise(64, 64))[:2000], "truncated|broken"),
        (_bomb(), "exceeds limit|more than the limit"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "cannot identify"),
    ],
)
def test_unreadable_images_say_why(data, reason):
    with pytest.raises(ValueError, match=f"^not a readable image: .*({reason})"):
        SMALL.pixels(data)


def test_images_over_the_limit_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 63)
    with pytest.raises(ValueError, match="8 x 8 pixels, more than the limit of 63"):
        SMALL.pixels(encoded(noise()))


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such image: .*gone.png"):
        SMALL.pixels(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="not a readable image: .*directory"):
        SMALL.pixels(tmp_path)


def test_fingerprint_follows_every_setting_and_the_code_version(monkeypatch):
    base = Preprocess(img_size=8)
    others = [
        Preprocess(img_size=16),
        Preprocess(img_size=8, fit="squash"),
        Preprocess(img_size=8, interpolation="bilinear"),
        Preprocess(img_size=8, mean=(0.5, 0.5, 0.5)),
        Preprocess(img_size=8, std=(0.5, 0.5, 0.5)),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 6
    assert base.fingerprint == Preprocess.from_dict(base.to_dict()).fingerprint
    before = base.fingerprint
    monkeypatch.setattr(module, "DECODING_VERSION", 2)
    assert base.fingerprint != before


@pytest.mark.parametrize(
    "settings",
    [
        {"img_size": 0},
        {"fit": "pad"},
        {"interpolation": "nearest"},
        {"mean": (0.5, 0.5)},
        {"std": (0.5, 0.0, 0.5)},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="must|need"):
        Preprocess(**settings)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"sharpen": True}, "unknown field `sharpen`"),
        ({"img_size": 8}, "unknown field `img_size`"),
        ({"image_size": 0}, "img_size must be at least 1, got 0"),
        ({"image_size": True}, "Expected `int`, got `bool` - at `$.image_size`"),
        ({"image_size": 1 << 20}, "Expected `int` <= 16384"),
        ({"fit": "pad"}, "Invalid enum value 'pad'"),
        ({"mean": [0.5, 0.5]}, "Expected `array` of length 3"),
        ({"crop_pct": 1.5}, "crop_pct must be above 0 and at most 1, got 1.5"),
    ],
)
def test_impossible_stored_settings_are_refused(stored, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Preprocess.from_dict(stored)


def test_a_smaller_crop_keeps_the_middle():
    rings = np.zeros((40, 40, 3), dtype=np.uint8)
    rings[8:32, 8:32] = 255  # the middle 60 % of each side
    for fit in ("crop", "squash"):
        middle = Preprocess(img_size=8, fit=fit, interpolation="bilinear", crop_pct=0.5)
        assert (middle.pixels(Image.fromarray(rings)) == 255).all()
        whole = Preprocess(img_size=8, fit=fit, interpolation="bilinear")
        assert (whole.pixels(Image.fromarray(rings))[0] == 0).all()


def test_the_crop_share_is_written_only_where_it_changes_something():
    assert "crop_pct" not in Preprocess().to_dict()
    assert Preprocess().fingerprint == "0fcd938dcd4e23bb"  # of indexes that exist already
    cropped = Preprocess(crop_pct=0.9)
    assert Preprocess.from_dict(cropped.to_dict()) == cropped
    assert cropped.fingerprint != Preprocess().fingerprint
    with pytest.raises(ValueError, match="crop_pct must be above 0 and at most 1, got 1.5"):
        Preprocess(crop_pct=1.5)


PREPROCESS = Preprocess(img_size=8)


def photo_with_damaged_exif():
    """A photo that Pillow reads with a warning about its metadata."""
    exif = Image.Exif()
    exif[0x010F] = "a camera with a long name"
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(stream, "JPEG", exif=exif)
    data = bytearray(stream.getvalue())
    at = data.index(b"Exif\0\0") + 6
    data[at + 8 : at + 10] = b"\xff\xff"  # as many entries as there are not
    return bytes(data)


def test_warning_does_not_make_a_photo_unreadable():
    data = photo_with_damaged_exif()
    with (
        pytest.warns(UserWarning, match="Truncated|Corrupt"),
        Image.open(io.BytesIO(data)) as image,
    ):
        image.getexif()
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:  # here every warning is an error
        decoded = list(pool.map(PREPROCESS.pixels, [data] * 40))
    assert all(np.array_equal(pixels, decoded[0]) for pixels in decoded)
    assert list(warnings.filters) == before


def test_filters_are_put_back_by_the_last_one_out():
    quiet, before = QuietPillow(), list(warnings.filters)
    quiet.__enter__()
    quiet.__enter__()
    quiet.__exit__(None, None, None)
    assert list(warnings.filters) != before
    quiet.__exit__(None, None, None)
    assert list(warnings.filters) == before


def test_warnings_of_others_are_still_heard():
    with QuietPillow(), pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)
