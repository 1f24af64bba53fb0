"""What an update must have done."""

from __future__ import annotations

import numpy as np
from toy import DIM, expected_embedding

from indexing import ImageIndex

QUERIES = np.random.default_rng(1).standard_normal((6, DIM)).astype(np.float32)


def counts(report):
    names = ("added", "changed", "renamed", "removed", "unchanged", "failed")
    return {name: value for name in names if (value := getattr(report, name))}


def assert_finds_exactly_its_photos(index, photos):
    """Every row is the embedding of the file it names, and search is NumPy's over these rows."""
    exact = np.stack([expected_embedding(photos / path) for path in index.paths])
    np.testing.assert_allclose(index.embeddings[:], exact, atol=1e-3)  # stored as float16
    k = min(4, len(index))
    ids, scores = index.search(QUERIES, k)
    unit = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True)
    cosines = unit @ index.embeddings[:].T
    np.testing.assert_array_equal(ids, index.ids[np.argsort(-cosines, axis=1)[:, :k]])
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :k], atol=1e-6)
    classes = [path.split("/")[0] for path in index.paths]
    assert [index.class_names[label] for label in index.labels] == classes
    reopened = ImageIndex.open(index.path)
    assert reopened.metadata.equals(index.metadata)
    assert index.verify().ok
