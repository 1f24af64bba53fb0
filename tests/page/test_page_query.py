from __future__ import annotations

import hashlib
import struct
import zlib

import pytest

from app.page.query import MAX_UPLOAD_BYTES, stored_query, uploaded_query
from indexing import Corpus, ImageIndex


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


def png(width: int, height: int) -> bytes:
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
    assert uploaded_query("a.png", png(8000, 6000)).name == "a.png"
    with pytest.raises(ValueError, match=r"has 9,000 x 6,000 pixels; at most 51,000,000 altogeth"):
        uploaded_query("a.png", png(9000, 6000))
    with pytest.raises(ValueError, match="far more than the 51,000,000 pixels"):
        uploaded_query("a.png", png(40_000, 10_000))


def test_an_upload_has_neither_id_nor_class_and_may_not_be_too_large():
    assert uploaded_query("a.jpg", b"abc").id is None
    assert uploaded_query("a.jpg", bytes(MAX_UPLOAD_BYTES)).label is None
    with pytest.raises(ValueError, match="has 20,000,001 bytes; at most 20,000,000"):
        uploaded_query("a.jpg", bytes(MAX_UPLOAD_BYTES + 1))
