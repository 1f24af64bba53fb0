"""How far a smaller encoder agrees with the full one: no labels and no index needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from numpy import ndarray

from matvit import Encoder, Submodel, embed
from retrieval.metrics import overlap


class Agreement(NamedTuple):
    """What a submodel keeps of the full encoder, as means over queries.

    Attributes:
        cosine: Of the query's vector with the full encoder's.
        overlap: Share of the full encoder's top k that the submodel also finds.
    """

    cosine: float
    overlap: float


class Agreements:
    """A full encoder's answers, to which others are compared.

    Args:
        original: The encoder, asked at full size.
        database: Images that are searched, as `Preprocess.pixels` makes them.
        queries: Images that ask; none of them should be in the database.
        k: Hits per query.

    Raises:
        ValueError: If there are fewer than k images in the database, or no queries.
    """

    def __init__(
        self,
        original: Encoder,
        database: UInt8[ndarray, "images height width 3"],
        queries: UInt8[ndarray, "queries height width 3"],
        k: int = 10,
    ) -> None:
        if len(database) < k or not len(queries):
            raise ValueError(
                f"expected at least {k} images to search and one that asks, "
                f"got {len(database)} and {len(queries)}"
            )
        self.k = k
        self._queries = queries
        self._database = embed(original, database)
        self._vectors = embed(original, queries)
        self._ids = self._search(self._vectors)

    def measure(self, encoder: Encoder, submodels: Sequence[Submodel]) -> list[Agreement]:
        """Ask the original's vectors with the submodels of an encoder, one after the other."""
        return [self._measure(embed(encoder, self._queries, each)) for each in submodels]

    def _measure(self, vectors: Float32[ndarray, "queries dim"]) -> Agreement:
        cosines = cosine(self._vectors, vectors)
        shared = overlap(self._search(vectors), self._ids, self.k)
        return Agreement(float(cosines.mean()), float(shared.mean()))

    def _search(self, vectors: Float32[ndarray, "queries dim"]) -> Int64[ndarray, "queries k"]:
        scores = vectors @ self._database.T
        return np.argsort(-scores, axis=1, kind="stable")[:, : self.k]


def cosine(
    full: Float[ndarray, "images dim"], submodel: Float[ndarray, "images dim"]
) -> Float[ndarray, " images"]:
    """Return the cosine of the angle between the two embeddings of each image.

    Raises:
        ValueError: If the tables differ in shape, or an embedding is zero.
    """
    if full.shape != submodel.shape or full.ndim != 2:
        raise ValueError(
            f"expected two tables of one shape with a row per image, got {full.shape} "
            f"and {submodel.shape}"
        )
    lengths = np.linalg.norm(full, axis=1) * np.linalg.norm(submodel, axis=1)
    for row in np.flatnonzero(lengths == 0):
        raise ValueError(f"embedding {row} is zero and has no direction")
    products: Float[ndarray, " images"] = (full * submodel).sum(axis=1) / lengths
    return products
