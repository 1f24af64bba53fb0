from __future__ import annotations

import hashlib
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photo_index import upload
from PIL import Image

from app.page.pictures import (
    MAX_UPLOAD_BYTES,
    SIDE,
    Kept,
    Pictures,
    Query,
    Sights,
    as_seen,
    portrait,
    stored_query,
    thumbnail,
    uploaded_query,
)
from indexing import Corpus, ImageIndex
from matvit.preprocess import Preprocess


@pytest.fixture
def index(tiny_model, photo_folder, tmp_path) -> ImageIndex:
    return ImageIndex.build(tiny_model, Corpus.open(photo_folder), tmp_path / "i.index")


def test_an_image_of_the_index_asks_with_its_file_and_its_class(index, photo_folder):
    row = index.paths.index("bread/01.png")
    query = stored_query(index, int(index.ids[row]))
    assert query.data == (photo_folder / "bread" / "01.png").read_bytes()
    assert (query.name, query.label, query.id) == ("bread/01.png", "bread", int(index.ids[row]))
    assert query.digest == hashlib.sha256(query.data).hexdigest()


def test_images_without_classes_ask_without_one(tiny_model, photo_folder, tmp_path):
    corpus = Corpus.open(photo_folder).without_labels()
    index = ImageIndex.build(tiny_model, corpus, tmp_path / "plain.index")
    assert stored_query(index, 0).label is None


def test_what_the_index_does_not_have_cannot_be_asked_with(index, photo_folder):
    with pytest.raises(KeyError, match="no image with id 99"):
        stored_query(index, 99)
    (photo_folder / "apple" / "00.png").write_bytes(b"something else")
    with pytest.raises(ValueError, match="has changed since it was indexed"):
        stored_query(index, index.paths.index("apple/00.png"))


def flat_png(width: int, height: int) -> bytes:
    """A flat picture: some kilobytes, whatever room it takes once it is decoded."""
    rows = zlib.compress(bytes(height * (1 + -(-width // 8))))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_an_upload_may_not_have_too_many_pixels(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)  # nothing is decoded to find out
    assert uploaded_query("a.png", flat_png(8000, 6000)).name == "a.png"
    with pytest.raises(ValueError, match=r"has 9,000 x 6,000 pixels; at most 51,000,000 altogeth"):
        uploaded_query("a.png", flat_png(9000, 6000))
    with pytest.raises(ValueError, match="far more than the 51,000,000 pixels"):
        uploaded_query("a.png", flat_png(40_000, 10_000))


def test_an_upload_has_neither_id_nor_class_and_may_not_be_too_large():
    assert uploaded_query("a.jpg", b"abc").id is None
    assert uploaded_query("a.jpg", bytes(MAX_UPLOAD_BYTES)).label is None
    with pytest.raises(ValueError, match="has 20,000,001 bytes; at most 20,000,000"):
        uploaded_query("a.jpg", bytes(MAX_UPLOAD_BYTES + 1))


def png(image: Image.Image, **more: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **more)
    return stream.getvalue()


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("size", [(500, 1000), (2000, 500), (300, 300)])
def test_a_portrait_keeps_the_shape_and_a_thumbnail_is_square(size):
    data = png(Image.new("RGBA", size, (255, 0, 0, 128)))
    whole = opened(portrait(data, 100))
    assert max(whole.size) == 100
    assert whole.width / whole.height == pytest.approx(size[0] / size[1], rel=0.02)
    assert opened(thumbnail(data, SPEC)).size == (SIDE, SIDE)


def test_pictures_stand_upright_and_what_is_transparent_is_white():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(Image.new("RGBA", (400, 200), (0, 0, 0, 0)), exif=exif)
    whole = opened(portrait(data, 160))
    assert whole.size == (80, 160)
    assert whole.getpixel((40, 80)) == (255, 255, 255)


def test_a_thumbnail_shows_the_part_that_the_encoder_sees():
    """Black, white, black: the middle third of a wide image is all that a crop keeps."""
    wide = Image.new("L", (900, 300), 0)
    wide.paste(255, (300, 0, 600, 300))
    assert np.asarray(opened(thumbnail(png(wide), SPEC)))[:, 8:-8].min() > 200
    whole = Preprocess(img_size=16, fit="squash")
    assert np.asarray(opened(thumbnail(png(wide), whole)))[:, :40].max() < 50


def test_every_pixel_the_encoder_sees_becomes_one_square():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    large = np.asarray(opened(as_seen(pixels)))
    assert large.shape == (128, 128, 3)
    for row, column in ((0, 0), (3, 7), (15, 15)):
        square = large[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert (square == pixels[row, column]).all()


def test_a_small_image_is_not_enlarged_and_a_small_square_jpeg_is_its_own_thumbnail():
    rng = np.random.default_rng(0)
    wide = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    assert opened(thumbnail(png(wide), SPEC)).size == (40, 40)
    assert opened(portrait(png(wide), 100)).size == (60, 40)
    square = jpeg(wide.crop((0, 0, 40, 40)))
    assert thumbnail(square, SPEC) is square
    assert thumbnail(jpeg(wide), SPEC) != jpeg(wide)
    part = Preprocess(img_size=16, crop_pct=0.5)  # shows its middle only
    assert thumbnail(square, part) != square
    assert thumbnail(square + bytes(30_000), SPEC) != square + bytes(30_000)


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


SPEC = Preprocess(img_size=16)


@pytest.fixture
def queries(photo_folder) -> list[Query]:
    return [upload(file) for file in sorted(photo_folder.rglob("*.png"))]


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    """What was decoded, in order; at most one at a time."""
    seen: list[bytes] = []
    alone, plain = Lock(), Preprocess.pixels

    def pixels(self, source):
        assert alone.acquire(blocking=False), "two are decoded at a time"
        seen.append(source)
        try:
            return plain(self, source)
        finally:
            alone.release()

    monkeypatch.setattr(Preprocess, "pixels", pixels)
    return seen


def test_a_query_is_seen_by_the_encoder_and_by_a_person(queries):
    sight = Sights(SPEC).of(queries[0])
    assert np.array_equal(sight.pixels, SPEC.pixels(queries[0].data))
    seen = np.asarray(Image.open(io.BytesIO(sight.seen)))
    assert np.array_equal(seen[4::8, 4::8], sight.pixels)
    assert Image.open(io.BytesIO(sight.whole)).size == (24, 20)


def test_a_query_is_decoded_once(queries, decoded):
    sights = Sights(SPEC)
    first = sights.of(queries[0])
    assert sights.of(Query(data=queries[0].data, name="a copy")) is first
    assert len(decoded) == 1


def test_visitors_do_not_decode_side_by_side(queries, decoded):
    sights, together = Sights(SPEC), Barrier(4)

    def look(number: int) -> None:
        together.wait(60)
        for query in queries[number % 2 :: 2]:
            sights.of(query)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(4)))
    assert len(decoded) == len(queries)


def test_sights_take_no_more_than_they_may(queries):
    one = Sights(SPEC).of(queries[0]).bytes
    sights = Sights(SPEC, kept_bytes=3 * one)
    for query in queries:
        sights.of(query)
    assert 0 < sights.used_bytes <= 3 * one


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="not a readable image"):
        Sights(SPEC).of(Query(data=b"text", name="a"))


def test_what_was_made_is_not_made_again():
    made = []
    kept: Kept[str, int] = Kept(2)

    def make() -> int:
        made.append(1)
        return 7

    assert [kept.made("a", make), kept.made("a", make)] == [7, 7]
    assert len(made) == 1


def test_what_was_used_least_recently_goes_first():
    kept: Kept[str, str] = Kept(2)
    for key in "abac":
        kept.made(key, lambda key=key: key)
    assert kept.made("a", lambda: "made again") == "a"
    assert kept.made("b", lambda: "made again") == "made again"


def test_what_is_larger_than_the_limit_is_returned_and_not_kept():
    kept: Kept[int, bytes] = Kept(10, len)
    assert kept.made(1, lambda: b"x" * 11) == b"x" * 11
    assert (len(kept), kept.currsize) == (0, 0)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 30))
def test_it_behaves_as_a_list_ordered_by_use(keys, limit):
    """The oracle: a plain list of keys, the size of each key being the key plus one."""
    kept: Kept[int, int] = Kept(limit, lambda value: value + 1)
    order: list[int] = []
    for key in keys:
        assert kept.made(key, lambda key=key: key) == key
        if key < limit:
            order = [each for each in order if each != key] + [key]
        while sum(each + 1 for each in order) > limit:
            order.pop(0)
        assert kept.currsize == sum(each + 1 for each in order)
        assert len(kept) == len(order)
