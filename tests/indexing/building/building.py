"""What a build must and must not have done."""

from __future__ import annotations

import numpy as np
import pytest

from indexing import build as building
from indexing.corpus.corpus import Corpus
from indexing.index import ImageIndex
from matvit.embedding import embed


@pytest.mark.parametrize(("batch_size", "shard_size"), [(256, 100), (1, 4), (5, 7), (5, 100)])
def test_every_row_is_the_embedding_of_its_own_image(
    tiny_model, photo_folder, tmp_path, monkeypatch, batch_size, shard_size
):
    bad = ["apple/01.jpg", "bread/00.jpg", "cheese/99.jpg"]
    for name in bad:
        (photo_folder / name).write_text("no image")
    corpus = Corpus.open(photo_folder)
    monkeypatch.setattr(building, "SHARD_SIZE", shard_size)
    index = ImageIndex.build(tiny_model, corpus, tmp_path / "index", batch_size=batch_size)
    assert len(index) == 12
    assert index.ids.tolist() == list(range(12))
    assert_rows_are_their_own_images(index, tiny_model, corpus)
    assert [failure.path for failure in index.failures] == bad


SAME = 1 - 1e-5
"""Cosine of one image embedded in another batch: bfloat16 sums may be ordered differently."""


def embed_alone(model, corpus, position):
    return embed(model, np.stack([model.preprocess.pixels(corpus.read(position))]))[0]


def assert_rows_are_their_own_images(index, model, corpus):
    for row, path in enumerate(index.paths):
        position = index.metadata.column("position")[row].as_py()
        assert corpus.name(position) == path
        cosines = index.embeddings[:] @ embed_alone(model, corpus, position)
        assert cosines[row] > SAME
        assert np.delete(cosines, row).max() < SAME


def assert_refused(model, corpus, path, error, message=None):
    """The build is refused, and the folder is as it was."""
    before = sorted(path.rglob("*")) if path.exists() else None
    with pytest.raises(error, match=message):
        ImageIndex.build(model, corpus, path)
    assert (sorted(path.rglob("*")) if path.exists() else None) == before
