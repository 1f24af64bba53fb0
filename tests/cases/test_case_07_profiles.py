"""A photograph with an embedded colour profile is the photograph that its sRGB copy is."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms
from profiles import ADOBE, P3, PROPHOTO, gray_profile, ink_profile, matrix_profile, naive
from toy import ToyEncoder

from indexing import Corpus, ImageIndex
from matvit import Preprocess
from matvit.preprocess import opened_upright

SRGB = ImageCms.createProfile("sRGB")
EXACT = Preprocess(img_size=64)
SPACES = {"ProPhoto": PROPHOTO, "P3": P3, "Adobe RGB": ADOBE}


def picture():
    gray = Image.radial_gradient("L").resize((64, 64))
    parts = gray, gray.rotate(90).point(lambda level: 255 - level), gray.point(lambda x: x // 2)
    return Image.merge("RGB", parts)


def stored_in(image, profile, mode):
    """The same colours in another space."""
    to = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    stored = ImageCms.profileToProfile(image, SRGB, to, outputMode=mode)
    return Image.fromarray(np.asarray(stored))  # it would say what its profile is


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def difference(one, other):
    one, other = (np.asarray(image, dtype=int) for image in (one, other))
    return np.abs(one - other).mean()


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_picture_of_a_wide_space_has_the_pixels_of_its_srgb_copy(space, kind):
    profile = matrix_profile(*SPACES[space])
    wide = stored_in(picture(), profile, "RGB")
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encoded(wide, kind, icc_profile=profile, **options.get(kind, {}))
    assert difference(EXACT.pixels(data), picture()) < 2
    assert difference(EXACT.pixels(encoded(wide)), picture()) > 3  # without its profile


def test_transparent_and_indexed_pictures_are_converted_too():
    profile = matrix_profile(*PROPHOTO)
    wide = stored_in(picture(), profile, "RGB")
    alpha = Image.linear_gradient("L").resize((64, 64))
    clear, plain = wide.copy(), picture()
    clear.putalpha(alpha)
    plain.putalpha(alpha)
    data = encoded(clear, icc_profile=profile)
    assert difference(EXACT.pixels(data), EXACT.pixels(encoded(plain))) < 2
    few = wide.quantize(64)
    expected = EXACT.pixels(encoded(few.convert("RGB"), icc_profile=profile))
    assert np.array_equal(EXACT.pixels(encoded(few, icc_profile=profile)), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_gray_of_another_gamma_is_converted(mode):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(4, 0).repeat(4, 1)
    gray = Image.fromarray(levels)
    if mode == "I;16":
        gray = Image.fromarray(levels.astype(np.uint16) * 257)
    seen = EXACT.pixels(encoded(gray.convert(mode) if mode == "LA" else gray,
                                icc_profile=gray_profile(1.0)))  # fmt: skip
    light = levels / 255
    srgb = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(seen - 255 * srgb[..., None]).max() <= 2


def test_inks_have_the_colours_of_their_profile():
    profile = ink_profile()
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    for ink in inks:
        image = Image.new("CMYK", (64, 64), ink)
        expected = _srgb_of(naive(*(part / 255 for part in ink)))
        for kind in ("TIFF", "JPEG"):
            seen = EXACT.pixels(encoded(image, kind, icc_profile=profile))[32, 32]
            assert np.abs(seen - expected).max() <= 4, (ink, seen, expected)


def _srgb_of(lab):
    """Through CIE formulas instead of a colour engine."""
    lightness, a, b = lab
    y = (lightness + 16) / 116
    f = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * (0.9642, 1, 0.8249)
    to_rgb = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    light = np.clip(np.array(to_rgb) @ xyz, 0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile",
        bytes(200),
        matrix_profile(*P3)[:150],
        matrix_profile(*P3)[:160] + bytes(300),
        gray_profile(1.0),  # not for such an image
        ink_profile(),
        ImageCms.ImageCmsProfile(SRGB).tobytes(),
        b"x" * (1 << 23),
    ],
)
def test_what_is_no_other_profile_changes_no_pixel(profile):
    image = picture()
    data = encoded(image, "TIFF", icc_profile=profile)
    assert np.array_equal(EXACT.pixels(data), EXACT.pixels(encoded(image)))


def test_query_and_index_see_the_same(tmp_path):
    profile = matrix_profile(*PROPHOTO)
    (tmp_path / "photos").mkdir()
    picture().save(tmp_path / "photos/srgb.png")
    stored_in(picture(), profile, "RGB").save(tmp_path / "photos/wide.png", icc_profile=profile)
    corpus = Corpus.open(tmp_path / "photos")
    index = ImageIndex.build(ToyEncoder(), corpus, tmp_path / "index")
    assert float(index.embeddings[0].astype(float) @ index.embeddings[1].astype(float)) > 0.999
    opened = Image.open(tmp_path / "photos/wide.png")
    assert np.array_equal(EXACT.pixels(opened), EXACT.pixels(tmp_path / "photos/wide.png"))
    assert index.info()["preprocess"]["colours"] == 2


def test_what_people_are_shown_is_converted_once():
    profile = matrix_profile(*PROPHOTO)
    data = encoded(stored_in(picture(), profile, "RGB"), icc_profile=profile)
    with opened_upright(data, 64) as (image, _, _):
        again = encoded(image)
    assert np.array_equal(EXACT.pixels(again), EXACT.pixels(data))


def test_large_picture_is_converted_as_a_small_one_is(monkeypatch):
    profile = matrix_profile(*P3)
    data = encoded(stored_in(picture(), profile, "RGB"), icc_profile=profile)
    whole = EXACT.pixels(data)
    monkeypatch.setattr("matvit.upright._STRIP_PIXELS", 64 * 7)
    assert np.array_equal(EXACT.pixels(data), whole)
