"""`ImageIndex`: what is stored is found, and what is damaged or foreign does not open.

Mutants these must catch: fingerprints of weights and preprocessing not checked apart; sizes not
checked; a FAISS file of other vectors accepted; ids used as row numbers.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace
from PIL import Image

from indexing.corpus.corpus import Corpus
from indexing.index import ImageIndex, IndexMismatchError
from indexing.store.folder import commit, read_manifest
from indexing.store.manifest import sealed
from matvit.embedding import embed
from matvit.model import MatViT
from matvit.preprocess import Preprocess

FAISS_FILE = "index/knn_g1.faiss"


@pytest.fixture
def corpus(photo_folder):
    (photo_folder / "bread/02.jpg").write_text("no image")
    return Corpus.open(photo_folder)


@pytest.fixture
def index(tiny_model, corpus, tmp_path):
    return ImageIndex.build(tiny_model, corpus, tmp_path / "photos.index")


@pytest.fixture
def rewrite(index):
    """Change a data file and make the manifest agree: damage that no size or hash shows."""

    def rewrite(name, content):
        (index.path / name).write_bytes(content)
        values = json.loads((index.path / "manifest.json").read_bytes())
        del values["sha256"]
        files = [
            file for shard in values["shards"] for file in shard.values() if isinstance(file, dict)
        ]
        for file in (*files, values["index"]["file"]):
            if file["name"] == name:
                digest = hashlib.sha256(content).hexdigest()
                file.update(bytes=len(content), sha256=digest)
        (index.path / "manifest.json").write_bytes(sealed(values))

    return rewrite


@pytest.fixture
def other_model(tiny_model):
    other = copy.deepcopy(tiny_model)
    next(other.parameters()).data.add_(0.01)
    return other


def test_rows_describe_the_images_that_could_be_read(index, corpus):
    read = [position for position in range(13) if position != 5]
    assert len(index) == 12
    assert index.paths == [corpus.name(position) for position in read]
    assert index.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert index.labels.dtype == np.int64
    assert index.class_names == ["apple", "bread", "cheese"]
    assert index.metadata.column("position").to_pylist() == read
    assert index.embeddings.shape == (12, 16)
    (failure,) = index.failures
    assert (failure.path, failure.error) == ("bread/02.jpg", "UnidentifiedImageError")


def test_opened_index_equals_the_built_one(index, tiny_model):
    opened = ImageIndex.open(index.path, tiny_model)
    np.testing.assert_array_equal(opened.embeddings[:], index.embeddings[:])
    assert opened.metadata.equals(index.metadata)
    assert opened.failures == index.failures
    queries = index.embeddings[:]
    for found, expected in zip(opened.search(queries, 5), index.search(queries, 5), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_every_stored_image_finds_itself_first(index, tiny_model, corpus):
    pixels = np.stack([tiny_model.preprocess.pixels(index.image_bytes(i)) for i in range(12)])
    ids, scores = index.search(embed(tiny_model, pixels), k=1)
    assert ids[:, 0].tolist() == list(range(12))
    np.testing.assert_allclose(scores, 1, atol=1e-4)  # the stored side is rounded to float16


def test_search_equals_sorting_all_cosines(index):
    queries = np.random.default_rng(1).standard_normal((30, 16)).astype(np.float32)
    stored = np.load(index.path / "img_emb/img_emb_000000.npy").astype(np.float64)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    asked = queries / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    cosines = asked @ stored.T
    ids, scores = index.search(queries, k=7)
    np.testing.assert_array_equal(ids, np.argsort(-cosines, axis=1, kind="stable")[:, :7])
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :7], atol=1e-6)


def test_copies_of_one_image_score_the_same_and_come_by_id(tiny_model, photo_folder, tmp_path):
    for number in range(40):
        shutil.copy(photo_folder / "bread/01.png", photo_folder / f"bread/copy_{number:02}.png")
    index = ImageIndex.build(tiny_model, Corpus.open(photo_folder), tmp_path / "index")
    copies = [row for row, path in enumerate(index.paths) if "copy" in path or "/01" in path]
    ids, scores = index.search(index.embeddings[copies], k=10)
    assert ids.tolist() == [copies[:10]] * 41
    assert len(np.unique(scores)) == 1


def test_more_images_than_there_are_returns_all(index):
    ids, scores = index.search(index.embeddings[:2], k=1_000)
    assert ids.shape == scores.shape == (2, 12)
    assert sorted(ids[0].tolist()) == list(range(12))


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(index, k):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        index.search(index.embeddings[:1], k)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_query_without_a_direction_is_refused(index, value):
    with pytest.raises(ValueError, match="query 0 is zero or not finite"):
        index.search(np.full((1, 16), value, dtype=np.float32), 1)


def test_query_of_another_dimension_is_refused(index):
    with pytest.raises(ValueError, match=r"shape \(queries, 16\), got \(1, 8\)"):
        index.search(np.ones((1, 8), dtype=np.float32), 1)


def test_rows_of_ids(index):
    index.ids = np.array([3, 4, 9, *range(20, 29)])
    assert index.rows_of(np.array([[9, 3], [28, 20]])).tolist() == [[2, 0], [11, 3]]
    for unknown in (5, -1, 99):
        with pytest.raises(KeyError, match=f"has no image with id {unknown}"):
            index.rows_of(np.array([3, unknown]))


def test_original_image_is_returned_byte_for_byte(index, corpus):
    for position, image in zip([0, 4, 6, 12], [0, 4, 5, 11], strict=True):
        assert index.image_bytes(image) == corpus.read(position)


def test_original_image_of_an_unknown_id_is_an_error(index):
    with pytest.raises(KeyError, match="has no image with id 12"):
        index.image_bytes(12)


def test_info_is_plain_json_and_says_what_the_index_is(index, tiny_model, corpus):
    info = json.loads(json.dumps(index.info()))
    assert (info["images"], info["failures"], info["classes"]) == (12, 1, 3)
    assert info["failures_by_error"] == {"UnidentifiedImageError": 1}
    encoder = {"name": "tiny", "fingerprint": tiny_model.fingerprint, "dim": 16, "macs": 44_608}
    assert info["encoder"] == encoder
    assert info["preprocess"]["fingerprint"] == tiny_model.preprocess.fingerprint
    assert info["corpus"] == {"root": str(corpus.root), "kind": "folder", "images": 13}
    data = [path for path in index.path.rglob("*.*") if path.parent != index.path]
    assert info["bytes"] == sum(path.stat().st_size for path in data)


def test_parquet_corpus_is_indexed_with_its_labels(tiny_model, corpus, photo_folder, tmp_path):
    names = ["bread/01.png", "apple/00.png"]
    images = [{"bytes": (photo_folder / name).read_bytes(), "path": name} for name in names]
    pq.write_table(pa.table({"image": images, "label": ["b", "a"]}), tmp_path / "x.parquet")
    index = ImageIndex.build(tiny_model, Corpus.open(tmp_path / "x.parquet"), tmp_path / "x.index")
    assert (index.paths, index.labels.tolist(), index.class_names) == (names, [1, 0], ["a", "b"])
    assert index.image_bytes(0) == images[0]["bytes"]
    assert ImageIndex.open(index.path).info()["corpus"]["kind"] == "parquet"


def test_other_weights_are_refused(index, tiny_model, other_model):
    message = (
        rf"was built by encoder tiny \({tiny_model.fingerprint}\), but this is tiny "
        rf"\({other_model.fingerprint}\); build the index again or load that encoder"
    )
    with pytest.raises(IndexMismatchError, match=message):
        index.check_encoder(other_model)
    with pytest.raises(IndexMismatchError, match=message):
        ImageIndex.open(index.path, other_model)


def test_other_preprocessing_is_refused_though_the_weights_are_the_same(index, tiny_model):
    other = MatViT(tiny_model.config, Preprocess(img_size=16, fit="squash"), "squashing")
    other.load_state_dict(tiny_model.state_dict())
    assert other.fingerprint == tiny_model.fingerprint
    message = (
        f"was built with preprocessing {tiny_model.preprocess.fingerprint}, but encoder "
        f"squashing uses {other.preprocess.fingerprint}"
    )
    with pytest.raises(IndexMismatchError, match=message):
        index.check_encoder(other)
    with pytest.raises(IndexMismatchError, match=message):
        ImageIndex.open(index.path, other)


def test_same_encoder_is_welcome(index, tiny_model):
    index.check_encoder(copy.deepcopy(tiny_model))


def test_missing_folder_is_no_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="no index at .*nowhere"):
        ImageIndex.open(tmp_path / "nowhere")


def test_index_of_another_kind_is_named(index):
    manifest = read_manifest(index.path)
    commit(index.path, replace(manifest, index=replace(manifest.index, kind="Annoy")))
    with pytest.raises(ValueError, match="index is of kind 'Annoy'; this program reads Flat,"):
        ImageIndex.open(index.path)


FILES = [
    "img_emb/img_emb_000000.npy",
    "metadata/metadata_000000.parquet",
    "failures/failures_000000.parquet",
    FAISS_FILE,
]


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_named(index, name):
    path = index.path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{name} is damaged: it has [\d,]+ bytes, the manifest"):
        ImageIndex.open(index.path)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(index, name):
    (index.path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is damaged: it is missing"):
        ImageIndex.open(index.path)


@pytest.mark.parametrize("name", FILES[1:])
def test_flipped_bit_anywhere_in_a_file_that_is_read_whole_is_found(index, name):
    path = index.path / name
    content = path.read_bytes()
    for offset in range(0, len(content), len(content) // 20):
        flipped = bytearray(content)
        flipped[offset] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            ImageIndex.open(index.path)


def test_faiss_file_of_other_vectors_is_found_by_images_that_miss_themselves(index, rewrite):
    other = faiss.IndexIDMap(faiss.IndexFlatIP(16))
    other.add_with_ids(-index.embeddings[:], index.ids)
    rewrite(FAISS_FILE, faiss.serialize_index(other).tobytes())
    with pytest.raises(ValueError, match=r"image apple/00.png does not find itself"):
        ImageIndex.open(index.path)


def test_faiss_file_of_other_ids_is_found(index, rewrite):
    other = faiss.IndexIDMap(faiss.IndexFlatIP(16))
    other.add_with_ids(index.embeddings[:], index.ids[::-1].copy())
    rewrite(FAISS_FILE, faiss.serialize_index(other).tobytes())
    with pytest.raises(ValueError, match="its ids are not those of the metadata"):
        ImageIndex.open(index.path)


@pytest.mark.parametrize("label", [-2, 3])
def test_label_without_a_class_name_is_found(index, rewrite, label):
    name = "metadata/metadata_000000.parquet"
    column = index.metadata.schema.get_field_index("label")
    labels = pa.array([*index.labels[:11], label], pa.int64())
    stream = pa.BufferOutputStream()
    pq.write_table(index.metadata.set_column(column, "label", labels), stream)
    rewrite(name, stream.getvalue().to_pybytes())
    with pytest.raises(ValueError, match=r"damaged: labels are outside its 3 class names"):
        ImageIndex.open(index.path)


def test_stored_row_that_is_no_unit_vector_is_found(index, rewrite):
    path = index.path / "img_emb/img_emb_000000.npy"
    content = bytearray(path.read_bytes())
    content[-32:] = bytes(32)  # the last row, all zeros
    rewrite("img_emb/img_emb_000000.npy", bytes(content))
    with pytest.raises(ValueError, match=r"img_emb_000000.npy is damaged: row 11 is not a unit"):
        ImageIndex.open(index.path)


def test_near_duplicates_do_not_keep_an_index_from_opening(tiny_model, tmp_path):
    """Stored lengths differ by float16 rounding, more than the cosine of such images does."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for number in range(60):
        pixels[number, 0, 0] ^= 1
        Image.fromarray(pixels).save(tmp_path / f"photos/{number:02}.png")
    corpus = Corpus.open(tmp_path / "photos")
    assert len(ImageIndex.build(tiny_model, corpus, tmp_path / "index")) == 60
