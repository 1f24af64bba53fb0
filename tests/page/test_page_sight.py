from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock

import numpy as np
import pytest
from photo_index import upload
from PIL import Image

from app.page.query import Query
from app.page.sight import Sights
from matvit.preprocess import Preprocess

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
    assert np.array_equal(seen[8::16, 8::16], sight.pixels)
    assert Image.open(io.BytesIO(sight.whole)).size == (448, 373)  # 24 x 20 pixels


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
