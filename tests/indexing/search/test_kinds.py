"""Choosing a kind: names, memory, the ladder, and factory strings that are not let through."""

from __future__ import annotations

from io import BytesIO
from itertools import pairwise

import faiss
import numpy as np
import pytest

from indexing.search.kinds import (
    KINDS,
    Kind,
    choose_kind,
    factory_kind,
    list_count,
    memory_bytes,
    named_kind,
)
from indexing.search.making import make_searcher

MILLION = 1_000_000


@pytest.mark.parametrize("name", KINDS)
def test_memory_of_a_kind_is_the_size_of_its_faiss_file(name):
    rows = np.random.default_rng(0).standard_normal((4_000, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kind = named_kind(name, len(rows), 32)
    index = make_searcher(rows, np.arange(len(rows)), kind)
    index.engine.write(written := BytesIO())
    assert memory_bytes(kind, len(rows), 32) == pytest.approx(written.tell(), rel=0.01)


@pytest.mark.parametrize(
    ("name", "per_vector"),
    [
        ("Flat", 1032),
        ("Flat16", 520),
        ("HNSW", 1304),
        ("IVFFlat", 1032),
        ("IVFSQ8", 264),
        ("IVFPQ", 72),
        ("IVFRaBitQ", 48),
    ],
)
def test_bytes_per_vector_are_those_of_the_table(name, per_vector):
    kind = named_kind(name, MILLION, 256)
    growth = memory_bytes(kind, 2 * MILLION, 256) - memory_bytes(kind, MILLION, 256)
    assert growth / MILLION == pytest.approx(per_vector, abs=0.5)


@pytest.mark.parametrize(
    ("images", "device", "expected"),
    [
        (1, "cpu", "Flat"),
        (50_000, "cpu", "Flat"),
        (50_001, "cpu", "HNSW"),
        (MILLION, "cpu", "HNSW"),
        (MILLION + 1, "cpu", "IVFSQ8"),
        (20 * MILLION, "cpu", "IVFSQ8"),
        (20 * MILLION + 1, "cpu", "IVFPQ"),
        (50_001, "cuda", "Flat"),
        (MILLION + 1, "cuda", "IVFSQ8"),
        (20 * MILLION + 1, "cuda", "IVFPQ"),
    ],
)
def test_count_and_device_decide_where_the_ladder_is_entered(images, device, expected):
    assert choose_kind(images, 256, device=device).name == expected


def test_ladder_goes_down_at_the_byte_where_a_kind_no_longer_fits():
    expected = ["HNSW", "IVFFlat", "IVFSQ8", "IVFPQ", "IVFRaBitQ"]
    for name, below in pairwise(expected):
        needed = memory_bytes(named_kind(name, 100_000, 256), 100_000, 256)
        assert choose_kind(100_000, 256, needed).name == name
        assert choose_kind(100_000, 256, needed - 1).name == below


@pytest.mark.parametrize(
    ("images", "device", "smallest"),
    [(100_000, "cpu", "IVFRaBitQ"), (100_000, "cuda", "IVFPQ"), (100, "cpu", "IVFSQ8")],
)
def test_memory_that_nothing_meets_names_the_smallest_kind(images, device, smallest):
    message = rf"no kind of index holds {images:,} images in 99 bytes; the smallest, {smallest}, "
    with pytest.raises(ValueError, match=message + "needs"):
        choose_kind(images, 256, 99, device)


@pytest.mark.parametrize(("images", "lists"), [(1, 1), (77, 1), (78, 2), (100_000, 1024)])
def test_every_list_has_rows_to_train_on(images, lists):
    assert list_count(images) == lists


def test_unknown_kind_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="unknown kind 'Flatt'; known: auto, Flat, Flat16, HNSW"):
        named_kind("Flatt", 10, 8)


@pytest.mark.parametrize(
    ("name", "images", "needed"), [("IVFFlat", 38, 39), ("IVFPQ", 255, 256), ("IVFRaBitQ", 1, 39)]
)
def test_too_few_images_for_a_kind_is_an_error_that_says_how_many(name, images, needed):
    with pytest.raises(ValueError, match=rf"kind {name} .*needs at least {needed} images, there"):
        named_kind(name, images, 16)
    assert named_kind(name, needed, 16).min_images <= needed


def test_factory_string_needs_a_row_per_list():
    with pytest.raises(ValueError, match=r"\(IVF64,SQ8\) needs at least 64 images, there are 63"):
        factory_kind("IVF64,SQ8", 63, 16)


@pytest.mark.parametrize(
    "factory",
    [
        *("PCA8,IVF16,Flat", "L2norm,Flat", "IVF16,PQ4+8", "IDMap,Flat", "LSH", "NSG32", "Flat\n"),
        *("IVF16_HNSW32,Flat", "IVF16,PQ4x4fs", "Flat,RFlat", "", "flat", "IVF16(Flat),Flat"),
    ],
)
def test_factory_string_that_is_not_known_to_be_safe_and_right_is_refused(factory):
    with pytest.raises(ValueError, match="is not accepted; use Flat, SQfp16"):
        factory_kind(factory, MILLION, 16)


def test_factory_string_that_does_not_suit_the_dimension_is_refused():
    with pytest.raises(ValueError, match="FAISS cannot make 'IVF16,PQ5' for vectors of dim"):
        factory_kind("IVF16,PQ5", MILLION, 16)


@pytest.mark.parametrize("factory", ["HNSW8,SQ8", "SQ8", "IVF16,SQ4", "OPQ4_8,IVF16,PQ4x6"])
def test_factory_string_gives_an_inner_product_index(factory):
    kind = factory_kind(factory, 5_000, 16)
    assert (kind, kind.name) == (Kind(name="factory", factory=factory), "factory")
    index = faiss.index_factory(16, kind.factory, faiss.METRIC_INNER_PRODUCT)
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
