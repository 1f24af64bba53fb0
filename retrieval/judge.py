"""Judging answers: against the right ones, and against those of the full encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from matvit import Preprocess, Submodel, embed
from retrieval import metrics
from retrieval.ground_truth import GroundTruth, Wanted
from retrieval.retriever import Retriever

_QUERIES_PER_BATCH = 1024  # FAISS takes a third of the time per query that it takes with 256
_CELLS_PER_TABLE = 1 << 22  # 32 MB of row numbers, however many images are relevant


class Quality(NamedTuple):
    """Every metric of one submodel, one value per query, NaN where it cannot be judged."""

    hit_rate_at_1: Float[np.ndarray, " queries"]
    recall_at_k: Float[np.ndarray, " queries"]
    map_at_r: Float[np.ndarray, " queries"]
    overlap_at_k: Float[np.ndarray, " queries"]

    @classmethod
    def concatenate(cls, parts: Sequence[Quality]) -> Quality:
        """Join the queries of several batches."""
        return cls(*(np.concatenate(values) for values in zip(*parts, strict=True)))


class Judge:
    """Asks an index the same queries with several submodels and judges what they find.

    Args:
        retriever: Encoder and index.
        truth: What is right.
        k: Hits that recall and overlap look at.
    """

    def __init__(self, retriever: Retriever, truth: GroundTruth, k: int) -> None:
        self.truth = truth
        self._retriever = retriever
        self._k = k

    @property
    def preprocess(self) -> Preprocess:
        """How queries become pixels."""
        return self._retriever.encoder.preprocess

    @property
    def batch_size(self) -> int:
        """Queries to judge at a time: fewer where MAP@R makes their answers long."""
        ranks = max(self._k, self.truth.most_relevant)
        return max(1, min(_QUERIES_PER_BATCH, _CELLS_PER_TABLE // ranks))

    def qualities(
        self,
        pixels: UInt8[np.ndarray, "queries height width 3"],
        wanted: Wanted,
        submodels: Sequence[Submodel],
    ) -> Iterator[Quality]:
        """Judge one submodel after the other on the same queries.

        Args:
            pixels: The queries, decoded; at least one.
            wanted: What they should find.
            submodels: What embeds them. The first is the one whose answers the others' overlap
                is measured against.
        """
        reference: Int64[np.ndarray, "queries ranks"] | None = None
        for submodel in submodels:
            vectors = embed(self._retriever.encoder, pixels, submodel)
            rows = self._find(vectors, wanted)
            reference = rows if reference is None else reference
            yield self._judge(rows, reference, wanted)

    def _find(
        self, vectors: Float32[np.ndarray, "queries dim"], wanted: Wanted
    ) -> Int64[np.ndarray, "queries ranks"]:
        """Fetch as many rows as the metrics look at: k, and for MAP@R all that are relevant."""
        ranks = max(self._k, int(wanted.total.max()))
        ids, _ = self._retriever.search_vectors(vectors, ranks + wanted.own.shape[1])
        rows = metrics.drop_self(self._retriever.index.rows_of(ids), wanted.own)[:, :ranks]
        missing = ranks - rows.shape[1]  # an index may hold fewer than k images
        return np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)

    def _judge(
        self,
        rows: Int64[np.ndarray, "queries ranks"],
        reference: Int64[np.ndarray, "queries ranks"],
        wanted: Wanted,
    ) -> Quality:
        relevant = metrics.relevance(self.truth.labels_of(rows), wanted.labels)
        return Quality(
            hit_rate_at_1=metrics.hit_rate(relevant, wanted.total, 1),
            recall_at_k=metrics.recall(relevant, wanted.total, self._k),
            map_at_r=metrics.map_at_r(relevant, wanted.total),
            overlap_at_k=metrics.overlap(rows, reference, self._k),
        )
