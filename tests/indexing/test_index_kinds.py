"""Indexes of every kind from build to repair, against exact search.

Mutants these must catch: a kind that is forgotten by an update; rows taken for ids once something
was removed; an approximate index of other vectors that opens; a budget that only `auto` keeps.
"""

from __future__ import annotations

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image
from toy import DIM, SIDE, ToyEncoder, photo
from vectors import flat_searcher

from indexing import Corpus, ImageIndex, verify_index
from indexing.search.kinds import KINDS, memory_bytes, named_kind, resolve, resolve_again
from indexing.search.making import store_searcher
from indexing.search.request import KindRequest, parse_bytes
from indexing.store.embeddings import unit_queries
from indexing.store.folder import commit, read_manifest
from indexing.store.manifest import Manifest, sealed

COUNT = 300
QUERIES = np.random.default_rng(3).standard_normal((60, DIM)).astype(np.float32)
ASKED = [
    *({"kind": kind} for kind in KINDS),
    {"factory": "IVF4,SQ4"},
    {"factory": "HNSW8,SQ8"},
    {"kind": "auto", "max_memory": "6KB"},
]


def name_of(asked):
    return asked.get("factory") or asked["kind"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds") / "photos"
    for number in range(COUNT):
        photo(root / f"{number:03}.png", number)
    return root


@pytest.fixture(scope="module", params=ASKED, ids=name_of)
def asked(request):
    return request.param


@pytest.fixture(scope="module")
def built(asked, original, tmp_path_factory):
    path = tmp_path_factory.mktemp("built") / "index"
    return ImageIndex.build(ToyEncoder(), Corpus.open(original), path, **asked)


@pytest.fixture
def index(built, tmp_path):
    return ImageIndex.open(shutil.copytree(built.path, tmp_path / "index"))


def assert_answers_like_exact_search(index, k=10):
    """Nearly all of the nearest are found, and each score is the exact one to the last bit."""
    flat = flat_searcher(index.embeddings, index.ids)
    everything = flat.search(unit_queries(QUERIES, DIM), len(index))
    found, scores = index.search(QUERIES, k)
    hits = 0
    for row in range(len(QUERIES)):
        ids, values = (part[row].tolist() for part in everything)
        expected = dict(zip(ids, values, strict=True))
        assert [expected[number] for number in found[row].tolist()] == scores[row].tolist()
        hits += len(set(ids[:k]) & set(found[row].tolist()))
    least = 1 if index.info()["kind"] in ("Flat", "Flat16") else 0.9  # of a target of 0.95
    assert hits / (k * len(QUERIES)) >= least


def test_index_of_any_kind_answers_and_says_what_it_is(index, asked):
    info = index.info()
    if "factory" in asked:
        assert (info["kind"], info["factory"]) == ("factory", asked["factory"])
    else:
        kind = "IVFSQ8" if "max_memory" in asked else asked["kind"]
        expected = named_kind(kind, COUNT, DIM)
        assert (info["kind"], info["factory"]) == (expected.name, expected.factory)
    assert info["note"] is None
    assert (info["calibration"] is None) == (info["kind"] == "Flat")
    assert_answers_like_exact_search(index)


def test_kind_is_kept_by_every_update(original, asked, tmp_path):
    photos = shutil.copytree(original, tmp_path / "photos")
    index = ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "new", **asked)
    (photos / "007.png").rename(photos / "new-name.png")
    for number in range(20):
        photo(photos / f"more/{number}.png", COUNT + number)
    index = index.add(ToyEncoder(), Corpus.open(photos), remove_missing=True)
    assert len(index) == COUNT + 20
    assert_answers_like_exact_search(index)
    index = index.remove(range(0, 60, 2))
    assert len(index) == COUNT - 10
    assert_answers_like_exact_search(index)
    assert_answers_like_exact_search(index, k=len(index))
    assert_answers_like_exact_search(ImageIndex.open(index.path, ToyEncoder()))
    assert index.verify().ok
    before = index.search(QUERIES, len(index))
    index = index.compact()
    assert index.info()["removed"] == 0
    for old, new in zip(before, index.search(QUERIES, len(index)), strict=True):
        np.testing.assert_array_equal(old, new)
    assert_answers_like_exact_search(index)
    info = index.info()
    assert info["note"] is None
    if "max_memory" not in asked:
        expected = "factory" if "factory" in asked else asked["kind"]
        assert info["kind"] == expected
    assert info["request"]["factory"] == asked.get("factory")
    assert index.verify().ok


@pytest.mark.parametrize("kind", ["HNSW", "IVFSQ8"])
def test_rows_removed_before_a_rebuild_are_not_looked_for_in_it(kind, tmp_path, original):
    photos = shutil.copytree(original, tmp_path / "photos")
    index = ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "i", kind=kind)
    index = index.remove(range(10))
    for number in range(10):
        (photos / f"{number:03}.png").unlink()
    photo(photos / "new.png", 999)
    index = index.add(
        ToyEncoder(), Corpus.open(photos)
    )  # rebuilt without the ten that are still stored
    index = index.remove([50])
    assert len(index) == COUNT - 10
    assert index.info()["removed"] == 11
    assert_answers_like_exact_search(index)
    assert index.verify().ok


def test_damaged_search_file_of_any_kind_is_found_and_made_anew(index):
    right = index.search(QUERIES, len(index))
    kind, name = index.info()["kind"], "index/knn_g1.faiss"
    path = index.path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="knn_g1.faiss is damaged"):
        ImageIndex.open(index.path)
    assert [damage.file for damage in verify_index(index.path).damaged] == [name]
    report = verify_index(index.path, repair=True)
    assert (report.ok, report.repaired) == (True, (name,))
    mended = ImageIndex.open(index.path)
    assert mended.info()["kind"] == kind
    for found, expected in zip(mended.search(QUERIES, len(mended)), right, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("spread", [0.3, 0.1, 0.03, 0.01])
def test_images_that_a_kind_cannot_tell_apart_do_not_keep_an_index_shut(tmp_path, spread, asked):
    """What is built opens: of images with one code, who is found first is chance."""
    chance = np.random.default_rng(0)
    base = chance.integers(60, 200, (SIDE, SIDE, 3))
    (tmp_path / "photos").mkdir()
    for number in range(COUNT):
        noise = 80 * spread * chance.standard_normal(base.shape)
        pixels = (base + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number:03}.png")
    index = ImageIndex.build(
        ToyEncoder(), Corpus.open(tmp_path / "photos"), tmp_path / "index", **asked
    )
    assert len(index) == COUNT
    assert index.verify().ok
    assert len(index.remove(range(50)).compact()) == COUNT - 50


def test_search_file_of_other_vectors_is_refused_though_its_hash_is_right(index):
    vectors = unit_queries(np.random.default_rng(5).standard_normal((COUNT, DIM)), DIM)
    request = read_manifest(index.path).index.request
    (index.path / "index/knn_g1.faiss").unlink()
    other = store_searcher(index.path, 1, request, vectors, index.ids)
    commit(index.path, replace(read_manifest(index.path), index=other))
    with pytest.raises(ValueError, match=r"knn_g1.faiss is damaged: image .* does not find itself"):
        ImageIndex.open(index.path)
    assert not verify_index(index.path).ok


def test_lists_on_disk_answer_as_those_in_memory(index):
    expected = index.search(QUERIES, 10)
    mapped = ImageIndex.open(index.path, mmap=True)
    mapped.remove([0])
    mapped = ImageIndex.open(index.path, mmap=True)
    index = ImageIndex.open(index.path)
    for found, right in zip(mapped.search(QUERIES, 10), index.search(QUERIES, 10), strict=True):
        np.testing.assert_array_equal(found, right)
    assert not np.isin(0, mapped.search(QUERIES, len(mapped))[0])
    assert expected[0].shape == (60, 10)


def test_index_that_shrinks_below_what_its_kind_needs_is_of_another_kind_and_says_so(
    original, tmp_path
):
    index = ImageIndex.build(
        ToyEncoder(), Corpus.open(original), tmp_path / "i", kind="IVFPQ", max_memory="1MB"
    )
    index = index.remove(range(100))
    index = index.compact()
    info = index.info()
    assert info["kind"] == "Flat"
    note = r"Flat instead of IVFPQ: kind IVFPQ .* needs at least 256 images, there are 200"
    assert re.match(note, info["note"])
    assert info["request"] == {
        "kind": "IVFPQ", "factory": None, "max_memory_bytes": 1_000_000, "device": "cpu",
    }  # fmt: skip
    assert_answers_like_exact_search(index)
    index = index.add(ToyEncoder(), Corpus.open(original))
    assert (index.info()["kind"], index.info()["note"]) == ("IVFPQ", None)


@pytest.mark.parametrize(
    ("device", "images", "kind"),
    [("cpu", 100_000, "HNSW"), ("cuda", 100_000, "Flat"), ("cuda", 1_000_001, "IVFSQ8")],
)
def test_auto_chooses_what_is_fast_where_it_will_be_searched(device, images, kind):
    request = KindRequest(device=device)
    assert resolve(request, images, 256).name == kind
    assert resolve_again(request, images, 256).kind.name == kind


def test_where_it_will_be_searched_is_remembered(original, tmp_path):
    build = partial(ImageIndex.build, ToyEncoder(), Corpus.open(original))
    asked = [build(tmp_path / name, search_device=name) for name in ("auto", "cpu", "cuda")]
    assert [index.info()["request"]["device"] for index in asked] == ["cpu", "cpu", "cuda"]
    changed = asked[-1].remove([0]).compact()
    assert changed.info()["request"]["device"] == "cuda"
    with pytest.raises(ValueError, match="searched on cpu or cuda, got 'tpu'"):
        build(tmp_path / "tpu", search_device="tpu")
    assert not (tmp_path / "tpu").exists()


def test_update_that_outgrows_its_memory_takes_the_smallest_kind_and_says_so():
    flat = memory_bytes(named_kind("Flat", 300, DIM), 300, DIM)
    request = KindRequest(kind="Flat", max_memory_bytes=flat)
    assert resolve_again(request, 300, DIM) == (named_kind("Flat", 300, DIM), None)
    kind, note = resolve_again(request, 301, DIM)
    assert kind.name == "Flat16"
    assert note.startswith(f"Flat16 instead of Flat: kind Flat (Flat) needs {flat + 40:,} bytes")
    kind, note = resolve_again(KindRequest(max_memory_bytes=10), 1_000, DIM)
    sizes = {name: memory_bytes(named_kind(name, 1_000, DIM), 1_000, DIM) for name in KINDS}
    assert sizes[kind.name] == min(sizes.values())
    assert "no kind of index holds 1,000 images in 10 bytes" in note


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kind": "Annoy"}, "unknown kind 'Annoy'; known: auto, Flat, Flat16"),
        ({"kind": "IVFPQ"}, "needs at least 256 images, there are 5; use Flat"),
        ({"kind": "HNSW", "factory": "SQ8"}, "kind 'HNSW' and factory 'SQ8' are both given"),
        ({"factory": "PCA4,Flat"}, "factory string 'PCA4,Flat' is not accepted"),
        ({"kind": "Flat", "max_memory": 199}, "needs 200 bytes for 5 images, more than the 199"),
        ({"factory": "HNSW32", "max_memory": "1kB"}, r"kind factory \(HNSW32\) needs 1,\d* bytes"),
        ({"max_memory": 50}, "no kind of index holds 5 images in 50 bytes; the smallest"),
        ({"max_memory": 0}, "max_memory must be at least 1 byte, got 0"),
        ({"max_memory": "much"}, "max_memory must be a size such as 4GB or 512MiB, got 'much'"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_embedded(
    original, tmp_path, monkeypatch, asked, message
):
    monkeypatch.delattr(ToyEncoder, "embed_pixels")
    corpus = Corpus.open(original).subset(range(5))
    with pytest.raises(ValueError, match=message):
        ImageIndex.build(ToyEncoder(), corpus, tmp_path / "i", **asked)
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4_000_000_000),
        ("1.5 g", 1_500_000_000),
        ("512MiB", 536_870_912),
        ("2kib", 2_048),
        ("7", 7),
        ("7 B", 7),
        ("1tb", 10**12),
        (99, 99),
    ],
)
def test_sizes_are_read_with_their_units(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "4 gigs", "-1GB", "4GB5", "nan", "1e9", "4iB", 1.5, True]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="max_memory must be a size such as 4GB"):
        parse_bytes(text)


def test_manifest_of_an_approximate_kind_is_read_as_it_was_written(index):
    manifest = read_manifest(index.path)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_calibration_that_is_missing_or_damaged_is_refused(original, tmp_path):
    path = ImageIndex.build(ToyEncoder(), Corpus.open(original), tmp_path / "i", kind="IVFSQ8").path
    values = json.loads((path / "manifest.json").read_bytes())
    del values["sha256"]
    for calibration, message in (
        (None, "calibration is missing, which kind 'IVFSQ8' needs"),
        (
            {**values["index"]["calibration"], "recall": 2.0},
            r"Expected `float` <= 1.0 - at `\$.index.calibration.recall`",
        ),
        ({**values["index"]["calibration"], "rescore": 1.0}, "Expected `int`, got `float`"),
    ):
        changed = {**values, "index": {**values["index"], "calibration": calibration}}
        with pytest.raises(ValueError, match=message):
            Manifest.from_json(sealed(changed))
    values["index"]["kind"] = "Annoy"
    (path / "manifest.json").write_bytes(sealed(values))
    with pytest.raises(ValueError, match="the index is of kind 'Annoy'; this program reads Flat,"):
        ImageIndex.open(path)


def test_cuda_without_a_gpu_is_refused_by_opening(index):
    from indexing.search import gpu

    if gpu.gpu_count():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="FAISS sees no GPU; use auto or cpu"):
        ImageIndex.open(index.path, device="cuda")
    assert len(ImageIndex.open(index.path, device="auto")) == COUNT
