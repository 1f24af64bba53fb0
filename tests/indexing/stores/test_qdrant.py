"""What is peculiar to Qdrant: folders of its own, collections of others, servers that are away."""

from __future__ import annotations

import numpy as np
import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex, open_store

qdrant = pytest.importorskip("qdrant_client")
from indexing import write_qdrant  # noqa: E402 -- where it is there
from indexing.stores.opening import images_in  # noqa: E402
from indexing.stores.qdrant import COLLECTION, QdrantStore, fill  # noqa: E402

# The client does, where it finds the folder locked.
LEAVES_ITS_LOCK_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def index(tmp_path) -> ImageIndex:
    for number in range(30):
        photo(tmp_path / "photos" / f"{number:02}.png", number)
    return ImageIndex.build(ToyEncoder(), Corpus.open(tmp_path / "photos"), tmp_path / "i")


@pytest.fixture
def client():
    with_closing = qdrant.QdrantClient(":memory:")
    yield with_closing
    with_closing.close()


def test_what_is_written_again_replaces_what_was_there(index, client):
    fill(index, "q", client)
    fill(index.remove(ids=[3]), "q", client)
    assert 3 not in images_in(QdrantStore("q", client)).ids


def test_a_collection_that_is_only_half_written_does_not_open(index, client, monkeypatch):
    def stop(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "update_collection", stop)
    with pytest.raises(KeyboardInterrupt):
        fill(index, "q", client)
    with pytest.raises(ValueError, match="q does not say which encoder may ask it"):
        QdrantStore("q", client)
    monkeypatch.undo()
    fill(index, "q", client)  # and is begun again
    assert len(images_in(QdrantStore("q", client))) == 30


def test_what_is_added_later_is_not_found_and_what_is_removed_is_an_error(index, client):
    fill(index, "q", client)
    opened = images_in(QdrantStore("q", client))
    vector = index.embeddings[4]
    point = qdrant.models.PointStruct(id=900, vector=vector.tolist(), payload={})
    client.upsert(COLLECTION, [point])
    assert opened.search(vector[None], 2)[0][0, 0] == 4
    client.delete(COLLECTION, [4])
    with pytest.raises(ValueError, match="q has changed since it was opened: .*open it again"):
        opened.embeddings[4]


def test_a_collection_of_somebody_else_is_neither_asked_nor_replaced(index, client):
    size = qdrant.models.VectorParams(size=8, distance=qdrant.models.Distance.COSINE)
    client.create_collection(COLLECTION, vectors_config=size)
    with pytest.raises(ValueError, match="does not say which encoder may ask it"):
        QdrantStore("q", client)
    with pytest.raises(FileExistsError, match="q is a Qdrant collection that is no index"):
        fill(index, "q", client)


def test_a_collection_that_compares_otherwise_is_refused(index, client):
    fill(index, "q", client)
    texts = client.get_collection(COLLECTION).config.metadata
    client.delete_collection(COLLECTION)
    size = qdrant.models.VectorParams(size=8, distance=qdrant.models.Distance.EUCLID)
    client.create_collection(COLLECTION, vectors_config=size, metadata=texts)
    row = index.metadata.slice(0, 1).drop_columns(["id"]).to_pylist()[0] | {"label": None}
    point = qdrant.models.PointStruct(id=0, vector=index.embeddings[0].tolist(), payload=row)
    client.upsert(COLLECTION, [point])
    with pytest.raises(ValueError, match="q compares vectors of dimension 8 by Euclid, wanted 8 "):
        QdrantStore("q", client)


@LEAVES_ITS_LOCK_OPEN
def test_a_folder_that_is_open_elsewhere_is_said_to_be(index, tmp_path):
    write_qdrant(index, tmp_path / "a.qdrant")
    opened = open_store(tmp_path / "a.qdrant")
    with pytest.raises(BlockingIOError, match=r"a\.qdrant is open elsewhere"):
        open_store(tmp_path / "a.qdrant")
    np.testing.assert_array_equal(opened.ids, index.ids)
    opened.embeddings._store._client.close()


def test_a_server_that_is_away_is_named(index):
    with pytest.raises(ConnectionError, match="Qdrant at http://127.0.0.1:9/x did not answer"):
        write_qdrant(index, "http://127.0.0.1:9/x")


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.lance", r"is called NAME\.qdrant"), ("http://localhost:6333", "names no collection")],
)
def test_another_name_is_refused(index, name, words):
    with pytest.raises(ValueError, match=words):
        write_qdrant(index, name)


def test_a_folder_that_is_not_there_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Qdrant folder at"):
        open_store(tmp_path / "a.qdrant")
    assert not (tmp_path / "a.qdrant").exists()
