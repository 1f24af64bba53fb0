"""Mutant to catch: cosines of vectors that are not of length one."""

from __future__ import annotations

import numpy as np
import pytest

from matvit.embedding import embed
from retrieval.agreement import Agreements, cosine


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)


def test_the_full_size_agrees_with_itself_completely(tiny_model, pixels):
    judge = Agreements(tiny_model, pixels[:16], pixels[16:], k=3)
    (own,) = judge.measure(tiny_model, [tiny_model.submodel("XL")])
    assert own.overlap == 1
    assert own.cosine == pytest.approx(1, abs=1e-6)


def test_agreement_is_counted_query_by_query(tiny_model, pixels):
    """Mutants: the submodel's own database, sums instead of means, the query's rank ignored."""
    judge = Agreements(tiny_model, pixels[:16], pixels[16:], k=3)
    (found,) = judge.measure(tiny_model, [tiny_model.submodel("S")])
    database, full = embed(tiny_model, pixels[:16]), embed(tiny_model, pixels[16:])
    small = embed(tiny_model, pixels[16:], "S")
    shared = [
        len(set(np.argsort(database @ one)[-3:]) & set(np.argsort(database @ other)[-3:])) / 3
        for one, other in zip(full, small, strict=True)
    ]
    assert found.overlap == pytest.approx(np.mean(shared))
    assert 0 < found.overlap < 1
    assert found.cosine == pytest.approx(np.mean([a @ b for a, b in zip(full, small, strict=True)]))


def test_too_few_images_are_refused(tiny_model, pixels):
    with pytest.raises(ValueError, match="at least 10 images to search and one that asks, got 9"):
        Agreements(tiny_model, pixels[:9], pixels[9:])
    with pytest.raises(ValueError, match="got 24 and 0"):
        Agreements(tiny_model, pixels, pixels[:0])


def test_cosine_by_hand():
    full = np.array([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]])
    submodel = np.array([[4.0, 3.0], [0.0, 5.0], [-1.0, 0.0]])
    assert cosine(full, submodel).tolist() == pytest.approx([24 / 25, 0, -1])


def test_an_embedding_of_length_zero_has_no_cosine():
    with pytest.raises(ValueError, match="embedding 1 is zero"):
        cosine(np.ones((2, 3)), np.array([[1.0, 0, 0], [0, 0, 0]]))


def test_embeddings_of_different_shapes_have_no_cosine():
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 4\)"):
        cosine(np.ones((2, 3)), np.ones((2, 4)))
