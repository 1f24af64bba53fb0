"""What is peculiar to LanceDB: its indexes, its versions, tables of others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex, open_store

lancedb = pytest.importorskip("lancedb")
from lancedb.index import IvfFlat, IvfPq  # noqa: E402 -- where it is there

from indexing import write_lance  # noqa: E402

IMAGES = 2_000


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ImageIndex:
    root = tmp_path_factory.mktemp("many")
    for number in range(IMAGES):
        photo(root / "photos" / f"{number:04}.png", number)
    return ImageIndex.build(ToyEncoder(), Corpus.open(root / "photos"), root / "photos.index")


def table_at(place):
    return lancedb.connect(place.parent).open_table(place.stem)


def recall(index, stored):
    """Share of the ten nearest that are found, and whether scores are exact."""
    queries = np.random.default_rng(3).standard_normal((200, 8)).astype(np.float32)
    wanted, _ = index.search(queries, 10)
    found, scores = stored.search(queries, 10)
    units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    exact = np.einsum("qd,qkd->qk", units, index.embeddings[found.ravel()].reshape(200, 10, 8))
    np.testing.assert_allclose(scores, exact, atol=1e-6)
    return np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(wanted, found, strict=True)])


def test_its_ivf_index_finds_what_exact_search_finds(index, tmp_path):
    write_lance(index, tmp_path / "a.lance", scanned=1_000)
    stored = open_store(tmp_path / "a.lance")
    store = stored.embeddings._store
    assert not store.is_exact
    assert store.effort.recall >= 0.95
    assert store.effort.nprobe < store.lists  # it does leave something out
    assert recall(index, stored) >= 0.95


@pytest.mark.parametrize("made", [IvfFlat, IvfPq])
def test_an_index_that_somebody_else_made_is_used(index, tmp_path, made):
    write_lance(index, tmp_path / "a.lance")
    sized = {"num_sub_vectors": 8} if made is IvfPq else {}
    table_at(tmp_path / "a.lance").create_index("vector", config=made(distance_type="dot", **sized))
    stored = open_store(tmp_path / "a.lance")
    assert not stored.embeddings._store.is_exact
    assert recall(index, stored) >= 0.95


def test_an_index_for_another_distance_is_refused(index, tmp_path):
    write_lance(index, tmp_path / "a.lance")
    table_at(tmp_path / "a.lance").create_index("vector", config=IvfFlat(distance_type="l2"))
    with pytest.raises(ValueError, match="is for the distance l2, wanted dot"):
        open_store(tmp_path / "a.lance")


def test_rows_that_its_index_does_not_cover_are_found(index, tmp_path):
    write_lance(index, tmp_path / "a.lance", scanned=1_000)
    before = open_store(tmp_path / "a.lance")
    table = table_at(tmp_path / "a.lance")
    row = table.search().where("id = 5").to_arrow()
    new = np.zeros(8, np.float32)
    new[0] = 1
    row = row.set_column(0, "id", pa.array([IMAGES + 7]))
    at = row.column_names.index("vector")
    table.add(row.set_column(at, "vector", pa.array([new.tolist()], row.schema.field(at).type)))
    after = open_store(tmp_path / "a.lance")
    assert after.search(new[None], 1)[0].tolist() == [[IMAGES + 7]]
    assert IMAGES + 7 not in before.search(new[None], 5)[0]
    assert (len(before), len(after)) == (IMAGES, IMAGES + 1)


def test_who_has_it_open_keeps_what_was_opened(index, tmp_path):
    write_lance(index, tmp_path / "a.lance")
    before = open_store(tmp_path / "a.lance")
    write_lance(index.remove(ids=[0]), tmp_path / "a.lance")
    query = index.embeddings[:1]
    assert before.search(query, 1)[0].tolist() == [[0]]
    assert open_store(tmp_path / "a.lance").search(query, 1)[0].tolist() != [[0]]


def test_a_table_of_somebody_else_is_neither_asked_nor_replaced(index, tmp_path):
    rows = pa.table({"id": [1, 2], "vector": [[1.0], [2.0]]})
    lancedb.connect(tmp_path).create_table("theirs", rows)
    with pytest.raises(ValueError, match="does not say which encoder may ask it"):
        open_store(tmp_path / "theirs.lance")
    with pytest.raises(FileExistsError, match="is a Lance table that is no index"):
        write_lance(index, tmp_path / "theirs.lance")
    assert table_at(tmp_path / "theirs.lance").count_rows() == 2


def test_a_vector_that_is_not_of_length_one_is_damage(index, tmp_path):
    write_lance(index, tmp_path / "a.lance")
    table_at(tmp_path / "a.lance").update(where="id = 0", values={"vector": [3.0] * 8})
    with pytest.raises(ValueError, match="vector of image 0 has length 8.48.*, wanted 1"):
        open_store(tmp_path / "a.lance")


def test_columns_that_are_missing_are_named(index, tmp_path):
    write_lance(index, tmp_path / "a.lance")
    table_at(tmp_path / "a.lance").drop_columns(["path"])
    with pytest.raises(ValueError, match="does not hold the rows of an index: .*path.*write it"):
        open_store(tmp_path / "a.lance")


@pytest.mark.parametrize("name", ["a", "a.qdrant", ".lance"])
def test_another_name_is_refused(index, tmp_path, name):
    with pytest.raises(ValueError, match=r"a Lance table is called NAME\.lance"):
        write_lance(index, tmp_path / name)


def test_a_table_that_is_not_there_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Lance table at"):
        open_store(tmp_path / "b" / "a.lance")
    assert not (tmp_path / "b").exists()


def test_vectors_of_another_dimension_are_refused(index, tmp_path):
    write_lance(index, tmp_path / "a.lance")
    table = table_at(tmp_path / "a.lance")
    rows = table.to_arrow()
    short = pa.array([[1.0, 0.0]] * len(rows), pa.list_(pa.float32(), 2))
    rows = rows.drop_columns(["vector"]).append_column("vector", short)
    lancedb.connect(tmp_path).create_table("a", rows, mode="overwrite")
    with pytest.raises(ValueError, match="has no column vector of fixed_size_list"):
        open_store(tmp_path / "a.lance")
