"""A map of an index: its plane as scikit-learn finds it, its file as pyarrow reads it."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex, Plane, atlas, write_atlas


@pytest.fixture
def index(tmp_path) -> ImageIndex:
    for number in range(60):
        photo(tmp_path / "photos" / "abc"[number % 3] / f"{number:02}.png", number)
    return ImageIndex.build(ToyEncoder(), Corpus.open(tmp_path / "photos"), tmp_path / "i")


def test_the_plane_is_that_of_principal_components(index, monkeypatch):
    monkeypatch.setattr(atlas, "_TOGETHER", 7)
    vectors = index.embeddings[:]
    plane, theirs = Plane.of(index.embeddings), PCA(2).fit(vectors.astype(np.float64))
    mine, wanted = plane.place(vectors), theirs.transform(vectors)
    np.testing.assert_allclose(np.abs(mine), np.abs(wanted), atol=1e-5)
    assert plane.shares == pytest.approx(tuple(theirs.explained_variance_ratio_))
    largest = plane.axes[np.arange(2), np.abs(plane.axes).argmax(axis=1)]
    assert (largest > 0).all()


def test_the_file_has_a_row_for_every_image_that_is_there(index, tmp_path, monkeypatch):
    monkeypatch.setattr(atlas, "_TOGETHER", 25)
    index = index.remove(paths=["a/03.png"])
    plane = write_atlas(index, tmp_path / "map.parquet", picture=lambda number: b"%d" % number)
    table = pq.read_table(tmp_path / "map.parquet").to_pydict()
    assert table["path"] == index.paths
    assert table["id"] == index.ids.tolist()
    assert table["label"] == [path[0] for path in index.paths]
    np.testing.assert_allclose(table["vector"], index.embeddings[:])
    places = np.stack([table["x"], table["y"]], axis=1)
    np.testing.assert_allclose(places, plane.place(index.embeddings[:]))
    assert [image["bytes"] for image in table["image"]] == [b"%d" % n for n in index.ids]


def test_the_command_writes_it_and_says_how_to_look_at_it(matvit, index, tmp_path):
    file = tmp_path / "map.parquet"
    (tmp_path / "photos/a/00.png").unlink()
    code, out, _ = matvit(
        "index", "export", index.path, "--to", "atlas", "--out", file, "--pictures"
    )
    assert code == 0
    assert f"embedding-atlas {file} --x x --y y --image image" in out
    images = pq.read_table(file).column("image").to_pylist()
    assert images[0]["bytes"] is None
    with Image.open(io.BytesIO(images[1]["bytes"])) as picture:
        assert picture.size == (96, 96)
    code, _, err = matvit("index", "export", index.path, "--out", file, "--to", "csv")
    assert (code, err.count("\n")) == (2, 1)
