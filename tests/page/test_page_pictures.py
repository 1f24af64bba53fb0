from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from app.page.pictures import SIDE, Pictures, as_seen, portrait, thumbnail
from indexing import Corpus, ImageIndex
from matvit.preprocess import Preprocess

SPEC = Preprocess(img_size=16)


def png(image: Image.Image, **more: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **more)
    return stream.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.fixture
def index(tiny_model, photo_folder, tmp_path) -> ImageIndex:
    return ImageIndex.build(tiny_model, Corpus.open(photo_folder), tmp_path / "i.index")


@pytest.mark.parametrize("size", [(10, 20), (400, 100), (160, 160)])
def test_a_portrait_keeps_the_shape_and_a_thumbnail_is_square(size):
    data = png(Image.new("RGBA", size, (255, 0, 0, 128)))
    whole = opened(portrait(data, 100))
    assert max(whole.size) == 100
    assert whole.width / whole.height == pytest.approx(size[0] / size[1], rel=0.02)
    assert opened(thumbnail(data, SPEC)).size == (SIDE, SIDE)


def test_pictures_stand_upright_and_what_is_transparent_is_white():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(Image.new("RGBA", (20, 10), (0, 0, 0, 0)), exif=exif)
    whole = opened(portrait(data, 160))
    assert whole.size == (80, 160)
    assert whole.getpixel((40, 80)) == (255, 255, 255)


def test_a_thumbnail_shows_the_part_that_the_encoder_sees():
    """Black, white, black: the middle third of a wide image is all that a crop keeps."""
    wide = Image.new("L", (90, 30), 0)
    wide.paste(255, (30, 0, 60, 30))
    assert np.asarray(opened(thumbnail(png(wide), SPEC)))[:, 8:-8].min() > 200
    whole = Preprocess(img_size=16, fit="squash")
    assert np.asarray(opened(thumbnail(png(wide), whole)))[:, :40].max() < 50


def test_every_pixel_the_encoder_sees_becomes_one_square():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    large = np.asarray(opened(as_seen(pixels)))
    assert large.shape == (256, 256, 3)
    for row, column in ((0, 0), (3, 7), (15, 15)):
        square = large[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert (square == pixels[row, column]).all()


def test_what_is_no_image_or_too_large_has_no_thumbnail(monkeypatch):
    with pytest.raises(ValueError, match="not a readable image"):
        thumbnail(b"%!PS-Adobe-3.0 EPSF-3.0", SPEC)
    monkeypatch.setattr("matvit.preprocess.MAX_PIXELS", 99)
    with pytest.raises(ValueError, match="10 x 10 pixels, more than the limit of 99"):
        thumbnail(png(Image.new("L", (10, 10))), SPEC)


def test_a_thumbnail_is_read_once(index, photo_folder):
    pictures = Pictures(index, SPEC)
    first = pictures.of(0)
    assert first.data is not None
    assert first.fetch_ms > 0
    (photo_folder / index.paths[0]).unlink()
    assert pictures.of(0) is first


def test_an_image_that_is_gone_or_was_changed_has_no_thumbnail(index, photo_folder):
    pictures = Pictures(index, SPEC)
    (photo_folder / index.paths[0]).unlink()
    (photo_folder / index.paths[1]).write_bytes(png(Image.new("L", (4, 4))))
    assert [pictures.of(0).data, pictures.of(1).data] == [None, None]
    with pytest.raises(KeyError, match="no image with id 99"):
        pictures.of(99)


def test_thumbnails_take_no_more_than_they_may(index):
    one = Pictures(index, SPEC).of(0).bytes
    pictures = Pictures(index, SPEC, kept_bytes=3 * one)
    for number in range(12):
        pictures.of(number)
    assert 0 < pictures.used_bytes <= 3 * one
