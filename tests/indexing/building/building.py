"""What a build must and must not have done."""

from __future__ import annotations

import numpy as np
import pytest

from indexing.index import ImageIndex
from matvit.embedding import embed

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
