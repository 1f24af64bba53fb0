"""Vectors that somebody has already, against an index that was built of the same images.

Mutants to catch: rows taken in the order of the file, not of the names; a name that is a part of
another; a sample that is compared with itself; what has no vector indexed without one.
"""

from __future__ import annotations

import csv
import struct

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy import ToyEncoder, expected_embedding, photo

from indexing.adopt import adopt_index
from indexing.corpus.corpus import Corpus
from indexing.given import GivenVectors, read_given
from indexing.index import ImageIndex

NAMES = [f"{folder}/{number:02}.png" for folder in ("apple", "bread") for number in range(10)]


@pytest.fixture
def photos(tmp_path):
    for seed, name in enumerate(NAMES):
        photo(tmp_path / "photos" / name, seed)
    return tmp_path / "photos"


@pytest.fixture
def vectors(photos):
    """What the encoder gives, three times as long: nobody promised unit vectors."""
    return 3 * np.stack([expected_embedding(photos / name) for name in NAMES]).astype(np.float32)


def adopted(photos, given, out, **how):
    adopt_index(ToyEncoder(), given, Corpus.open(photos), out, **how)
    return ImageIndex.open(out, ToyEncoder())


def built(photos, out):
    return ImageIndex.build(ToyEncoder(), Corpus.open(photos), out)


def same(one: ImageIndex, other: ImageIndex) -> None:
    assert [one.path_of(row) for row in range(len(one))] == [
        other.path_of(row) for row in range(len(other))
    ]
    queries = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    ids, scores = one.search(queries, k=7)
    wanted_ids, wanted = other.search(queries, k=7)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-3)  # float16, rounded twice


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_rows_in_the_order_of_the_images_need_no_names(photos, vectors, tmp_path, kind):
    np.save(tmp_path / "v.npy", vectors.astype(kind))
    index = adopted(photos, read_given(tmp_path / "v.npy"), tmp_path / "index")
    same(index, built(photos, tmp_path / "built"))


def test_an_adopted_index_has_what_a_built_one_has(photos, vectors, tmp_path):
    index = adopted(photos, GivenVectors([vectors]), tmp_path / "index")
    other = built(photos, tmp_path / "built")
    keys = ("images", "failures", "encoder", "preprocess", "corpus", "kind")
    assert {k: index.info()[k] for k in keys} == {k: other.info()[k] for k in keys}
    assert not index.verify(originals=True).damaged
    assert not index.verify(originals=True).changed


def test_several_files_are_one_after_the_other(photos, vectors, tmp_path):
    (tmp_path / "parts").mkdir()
    for part in range(4):
        np.save(tmp_path / "parts" / f"{part}.npy", vectors[5 * part : 5 * part + 5])
    index = adopted(photos, read_given(tmp_path / "parts"), tmp_path / "index")
    same(index, built(photos, tmp_path / "built"))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("kind", ["list", "fixed", "half", "double"])
def test_parquet_is_matched_by_the_paths_in_it(photos, vectors, tmp_path, kind, absolute):
    order = np.random.default_rng(1).permutation(20)
    rows = vectors[order]
    types = {"list": pa.list_(pa.float32()), "fixed": pa.list_(pa.float32(), 8),
             "half": pa.list_(pa.float16()), "double": pa.large_list(pa.float64())}  # fmt: skip
    lists = [row.astype(np.float16) if kind == "half" else row.tolist() for row in rows]
    root = f"{photos}/" if absolute else ""
    table = pa.table({
        "caption": ["x"] * 20,
        "embedding": pa.array([list(row) for row in lists], types[kind]),
        "image_path": [root + NAMES[row] for row in order],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=6)
    index = adopted(photos, read_given(tmp_path / "v.parquet"), tmp_path / "index")
    same(index, built(photos, tmp_path / "built"))


@pytest.mark.parametrize("metric", ["IP", "L2"])
def test_a_flat_faiss_file_with_ids_is_matched_by_a_table(photos, vectors, tmp_path, metric):
    flat = faiss.IndexFlatIP(8) if metric == "IP" else faiss.IndexFlatL2(8)
    index = faiss.IndexIDMap2(flat) if metric == "IP" else faiss.IndexIDMap(flat)
    order = np.random.default_rng(2).permutation(20)
    index.add_with_ids(vectors[order], 1000 + 7 * order)
    faiss.write_index(index, str(tmp_path / "v.faiss"))
    with (tmp_path / "ids.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "path"])
        writer.writerows((1000 + 7 * row, name) for row, name in enumerate(NAMES))
    given = read_given(tmp_path / "v.faiss", tmp_path / "ids.csv")
    same(adopted(photos, given, tmp_path / "index"), built(photos, tmp_path / "built"))
    with pytest.raises(ValueError, match="by ids; name a table"):
        read_given(tmp_path / "v.faiss")


def test_a_flat_faiss_file_without_ids_is_in_the_order_of_the_images(photos, vectors, tmp_path):
    flat = faiss.IndexFlatIP(8)
    flat.add(vectors)
    faiss.write_index(flat, str(tmp_path / "v.faiss"))
    given = read_given(tmp_path / "v.faiss")
    same(adopted(photos, given, tmp_path / "index"), built(photos, tmp_path / "built"))


@pytest.mark.parametrize("factory", ["HNSW8,Flat", "SQ8", "PQ4x4", "IVF2,Flat"])
def test_faiss_files_of_other_types_are_refused_and_say_what_to_do(vectors, tmp_path, factory):
    index = faiss.index_factory(8, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(np.repeat(vectors, 50, axis=0))
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "v.faiss"))
    with pytest.raises(ValueError, match="no flat FAISS index .*reconstruct_n"):
        read_given(tmp_path / "v.faiss")


def test_what_has_no_vector_is_left_to_an_addition(photos, vectors, tmp_path):
    names = pa.array([*NAMES[3:], "gone.png"], pa.large_string())
    given = GivenVectors([np.concatenate([vectors[3:], vectors[:1]])], names)
    report = adopt_index(ToyEncoder(), given, Corpus.open(photos), tmp_path / "index")
    assert (report.images, report.without_vector, report.without_image) == (17, 3, 1)
    index = ImageIndex.open(tmp_path / "index").add(ToyEncoder(), Corpus.open(photos))
    assert (index.report.added, index.report.unchanged, len(index)) == (3, 17, 20)


def test_an_image_that_cannot_be_read_is_a_failure(photos, vectors, tmp_path):
    (photos / NAMES[4]).write_bytes(b"no image")
    report = adopt_index(
        ToyEncoder(), GivenVectors([vectors]), Corpus.open(photos), tmp_path / "index"
    )
    assert (report.images, report.failed) == (19, 1)
    index = ImageIndex.open(tmp_path / "index")
    for row in range(len(index)):
        wanted = expected_embedding(photos / index.path_of(row))
        np.testing.assert_allclose(index.embeddings[row], wanted, atol=1e-3)


@pytest.mark.parametrize("how", ["shifted", "another encoder", "one pair swapped"])
def test_vectors_that_the_encoder_does_not_give_are_refused(photos, vectors, tmp_path, how):
    wrong = {
        "shifted": np.roll(vectors, 1, axis=0),
        "another encoder": np.random.default_rng(3).standard_normal((20, 8)),
        "one pair swapped": vectors[[1, 0, *range(2, 20)]],
    }[how]
    with pytest.raises(ValueError, match=r"toy does not give these vectors: of 20 sampled") as said:
        adopted(photos, GivenVectors([wrong]), tmp_path / "index")
    assert not (tmp_path / "index").exists()
    assert "cosine" in str(said.value)


def test_vectors_near_another_image_are_refused_though_they_are_near_their_own(photos, tmp_path):
    base = np.ones(8) / 8**0.5
    own = np.stack([expected_embedding(photos / name) for name in NAMES])

    class Narrow(ToyEncoder):
        """All of its vectors are alike, as those of some encoders are."""

        def embed_pixels(self, pixels, submodels, number_format, memory=None):
            found = super().embed_pixels(pixels, submodels, number_format)
            near = base + 0.05 * found
            return near / np.linalg.norm(near, axis=-1, keepdims=True)

    near = base + 0.05 * own
    near = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    assert (near @ near.T).min() > 0.95
    with pytest.raises(ValueError, match="does not give these vectors"):
        adopt_index(
            Narrow(), GivenVectors([np.roll(near, 1, axis=0)]), Corpus.open(photos),
            tmp_path / "index",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v[:19], "19 vectors for 20 images"),
        (lambda v: v[:, :7], "dimension 7, encoder toy gives 8"),
        (lambda v: np.where(np.arange(20)[:, None] == 5, 0, v), "vector 5 has length 0.0"),
        (lambda v: np.where(np.arange(20)[:, None] == 5, np.nan, v), "vector 5 has length nan"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(photos, vectors, tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        adopted(photos, GivenVectors([change(vectors)]), tmp_path / "index")


def test_names_that_fit_no_image_or_come_twice_are_refused(photos, vectors, tmp_path):
    for names, said in (
        ([f"x{name}" for name in NAMES], "none of the 20 vectors is named after"),
        ([NAMES[0], *NAMES[:-1]], "several vectors are called 'apple/00.png'"),
    ):
        given = GivenVectors([vectors], pa.array(names, pa.large_string()))
        with pytest.raises(ValueError, match=said):
            adopted(photos, given, tmp_path / "index")


def flat_file(dim, rows, count, body, metric=0):
    header = struct.pack("<iqqq?i", dim, rows, 1 << 20, 1 << 20, True, metric)
    return b"IxFI" + header + struct.pack("<Q", count) + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"IxFI",
        flat_file(8, 1 << 40, 1 << 43, b"\0" * 64),
        flat_file(8, 2, 16, b"\0" * 63),
        flat_file(8, 2, 15, b"\0" * 64),
        flat_file(-1, 2, 16, b"\0" * 64),
        flat_file(8, 2, 16, b"\0" * 64, metric=4),
        b"IxMp" + struct.pack("<iqqq?i", 8, 2, 1, 1, True, 0) + flat_file(8, 2, 16, b"\0" * 64),
        b"IxMp" + b"IxMp" * 1000,
    ],
)
def test_a_damaged_faiss_file_is_refused(tmp_path, content):
    (tmp_path / "v.faiss").write_bytes(content)
    with pytest.raises(ValueError, match="v.faiss"):
        read_given(tmp_path / "v.faiss")


def test_what_is_no_vector_file_is_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros(8, np.float32))
    np.save(tmp_path / "whole.npy", np.zeros((2, 8), np.int64))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:40])
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 junk")
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "empty.parquet")
    ragged = pa.table({"path": ["a", "b"], "v": pa.array([[1.0], [1.0, 2.0]])})
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    for name in ("objects.npy", "flat.npy", "whole.npy", "cut.npy", "junk.parquet",
                 "empty.parquet", "ragged.parquet"):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            read_given(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no vectors at"):
        read_given(tmp_path / "gone.npy")
