"""LanceDB and Qdrant asked as an index is: the oracle is NumPy over all vectors."""

from __future__ import annotations

import gc
import re
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy import ToyEncoder, photo

import indexing
from indexing import (
    Corpus,
    ImageIndex,
    IndexMismatchError,
    Where,
    is_store,
    open_store,
    read_given,
    write_parquet,
)
from retrieval import Retriever, Wish, evaluate_queries

IMAGES = 60


class OtherEncoder(ToyEncoder):
    """One of the same shape with other weights."""

    name, fingerprint = "other", "71" * 8


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ImageIndex:
    """Sixty images in three classes, of which one was removed and two are the same."""
    root = tmp_path_factory.mktemp("store")
    for number in range(IMAGES):
        photo(root / "photos" / "abc"[number % 3] / f"{number:02}.png", number)
    (root / "photos/b/01.png").write_bytes((root / "photos/a/00.png").read_bytes())
    index = ImageIndex.build(ToyEncoder(), Corpus.open(root / "photos"), root / "photos.index")
    return index.remove(paths=["c/02.png"])


@pytest.fixture(scope="module", params=["lance", "qdrant", "memory"])
def stored(request, index, tmp_path_factory):
    """The same images in a store."""
    folder = tmp_path_factory.mktemp("exported")
    if request.param == "lance":
        pytest.importorskip("lancedb")
        from indexing import write_lance

        write_lance(index, folder / "photos.lance")
        yield open_store(folder / "photos.lance")
        return
    qdrant = pytest.importorskip("qdrant_client")
    from indexing import write_qdrant
    from indexing.stores.opening import images_in
    from indexing.stores.qdrant import QdrantStore, fill

    if request.param == "memory":
        fill(index, "memory.qdrant", client := qdrant.QdrantClient(":memory:"))
        opened = images_in(QdrantStore("memory.qdrant", client))
    else:
        write_qdrant(index, folder / "photos.qdrant")
        opened = open_store(folder / "photos.qdrant")
    yield opened
    opened.embeddings._store._client.close()


def nearest(index, queries, k, allowed=None):
    """Ids and scores of the k nearest, equal scores by smaller id, in float64."""
    rows = np.arange(len(index)) if allowed is None else np.flatnonzero(allowed)
    scores = queries.astype(np.float64) @ index.embeddings[rows].astype(np.float64).T
    ids = np.broadcast_to(index.ids[rows], scores.shape)
    order = np.lexsort((ids, -scores.round(7)))[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)


def unit(count, seed, dim=8):
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 10, IMAGES - 1, 1000])
def test_a_store_gives_exact_ids_and_scores(index, stored, k):
    queries = unit(20, seed=1)
    wanted, values = nearest(index, queries, k)
    ids, scores = stored.search(queries, k)
    np.testing.assert_array_equal(ids, wanted)
    np.testing.assert_allclose(scores, values, atol=1e-6)


def test_its_scores_are_those_of_the_index_to_the_last_bit(index, stored):
    queries = np.concatenate([unit(20, seed=2), index.embeddings[:5]])
    for mine, theirs in zip(index.search(queries, 7), stored.search(queries, 7), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_it_knows_of_the_images_what_the_index_knows(index, stored):
    assert stored.metadata.equals(index.metadata)
    assert (stored.class_names, stored.paths) == (index.class_names, index.paths)
    np.testing.assert_array_equal(stored.embeddings[:], index.embeddings[:])
    np.testing.assert_array_equal(stored.embeddings[3], index.embeddings[3])
    rows = np.array([7, 3, 7])
    np.testing.assert_array_equal(stored.embeddings[rows], index.embeddings[rows])
    assert stored.embeddings[rows[:0]].shape == (0, 8)
    assert stored.image_bytes(4) == index.image_bytes(4)


def test_a_retriever_asks_it_as_it_asks_an_index(index, stored):
    image = index.file_of(5)
    for wish in (
        Wish(),
        Wish(where=Where(inside=("b/*",))),
        Wish(where=Where(labels=("c",)), exclude_self=True),
        Wish(collapse=0.999),
    ):
        mine, theirs = (Retriever(ToyEncoder(), each).search(image, k=6, wish=wish)
                        for each in (index, stored))  # fmt: skip
        assert theirs.hits == mine.hits


def test_evaluating_it_gives_the_same_numbers(index, stored):
    corpus = Corpus.open(index.path.parent / "photos")
    full = ToyEncoder().submodel()
    mine, theirs = (
        evaluate_queries(Retriever(ToyEncoder(), each), corpus, [full], k=5)
        for each in (index, stored)
    )
    (point,), (other,) = mine.frontier, theirs.frontier
    assert (point.hit_rate_at_1, point.map_at_r) == (other.hit_rate_at_1, other.map_at_r)


def test_another_encoder_is_refused_in_one_line(stored):
    with pytest.raises(IndexMismatchError, match=r"built by encoder toy .* but this is other"):
        Retriever(OtherEncoder(), stored)


def test_rows_outside_the_table_are_an_error(stored):
    with pytest.raises(IndexError, match=r"within 0\.\.58"):
        stored.embeddings[np.array([59])]


def test_a_store_whose_images_do_not_find_themselves_does_not_open(index, stored, monkeypatch):
    from indexing.stores.opening import images_in

    store = stored.embeddings._store
    first = (np.ones(1, np.float32), store.ids[:1])
    monkeypatch.setattr(type(store), "ask", lambda self, queries, reach: [first] * len(queries))
    with pytest.raises(ValueError, match="image .* does not find itself; write it again"):
        images_in(store)


def test_parquet_holds_all_that_is_known_and_can_be_adopted(index, tmp_path):
    write_parquet(index, tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.column("path").to_pylist() == index.paths
    assert table.column("label").to_pylist() == [path[0] for path in index.paths]
    assert ToyEncoder.fingerprint.encode() in table.schema.metadata[b"matvit.encoder"]
    assert {b"matvit.preprocess", b"matvit.format"} <= table.schema.metadata.keys()
    given = read_given(tmp_path / "all.parquet")
    assert given.names.to_pylist() == index.paths
    np.testing.assert_allclose(given.take(np.arange(len(index))), index.embeddings[:], atol=1e-7)


@pytest.mark.parametrize(
    ("name", "yes"),
    [
        ("photos.lance", True), ("s3://bucket/photos.lance/", True), ("a/photos.qdrant", True),
        ("http://localhost:6333/photos", True), ("photos.index", False), ("lance", False),
    ],
)  # fmt: skip
def test_a_store_is_known_by_its_name(name, yes):
    assert is_store(name) is yes
    if not yes:
        with pytest.raises(ValueError, match=f"{re.escape(name)} is no store: a Lance table is"):
            open_store(name)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Qdrant's files
@pytest.mark.parametrize("to", ["lance", "qdrant"])
def test_the_command_exports_and_asks(matvit, tiny_model, encoder, shared_photos, tmp_path, to):
    pytest.importorskip({"lance": "lancedb", "qdrant": "qdrant_client"}[to])
    ImageIndex.build(tiny_model, Corpus.open(shared_photos), tmp_path / "i")
    place = tmp_path / f"photos.{to}"
    for _ in range(2):  # the second replaces the first
        code, out, _ = matvit("index", "export", tmp_path / "i", "--to", to, "--out", place)
        assert code == 0
        assert f"Ask it: matvit search {place} IMAGE" in out
    asked = (shared_photos / "apple/00.png", "bread/01.png", "--encoder", encoder, "--csv")
    code, mine, _ = matvit("search", tmp_path / "i", *asked)
    assert code == 0
    assert matvit("search", place, *asked)[:2] == (0, mine)
    gc.collect()  # or Qdrant's folder would be locked by what the test has just asked
    code, _, err = matvit("search", place, *asked, "--submodel", "auto")
    assert code == 1
    assert "ask the index, or name a submodel" in err


def test_a_library_that_is_missing_is_named_with_its_extra(matvit, monkeypatch, index, tmp_path):
    for to, module in (("lance", "lancedb"), ("qdrant", "qdrant_client")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, f"indexing.stores.{to}", raising=False)
        monkeypatch.delitem(vars(indexing), f"write_{to}", raising=False)
        place = tmp_path / f"x.{to}"
        code, _, err = matvit("index", "export", index.path, "--to", to, "--out", place)
        assert code == 1
        assert f"pip install 'matvit-retrieval[{to}]'" in err


def test_pictures_go_with_a_map_only(matvit, index, tmp_path):
    place = tmp_path / "x.parquet"
    words = ("index", "export", index.path, "--to", "parquet", "--out", place, "--pictures")
    code, _, err = matvit(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert matvit(*words[:-1])[0] == 0
