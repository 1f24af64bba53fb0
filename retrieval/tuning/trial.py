"""Asking a set of queries with one submodel after the other, and remembering what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from matvit import (
    MatViTConfig,
    Submodel,
    count_macs,
    embed,
    embed_each,
    parse_submodel,
    trained_sizes,
)
from retrieval import metrics
from retrieval.ground_truth import find_others
from retrieval.retriever import Retriever
from retrieval.tuning.journal import Score
from retrieval.tuning.record import whole
from retrieval.tuning.sample import Queries
from retrieval.tuning.score_scale import ScoreScale

_NEIGHBOURS = 32


class Trial:
    """Queries, the full encoder's answers to them, and what submodels keep of those.

    Nothing is measured twice.

    The neighbour distortion of a submodel says how far it moves the scores of a query's nearest
    images against each other: the mean square of (s - f) . (x - m), where s and f are the vectors
    of a query by the submodel and by the full encoder, x the stored vectors of the images nearest
    to f, and m their mean. A shift that moves all neighbours alike, which makes up most of
    1 - cosine and changes no order, does not count. It needs no search, and far fewer queries than
    an overlap does to tell two submodels apart.

    Args:
        retriever: A whole encoder and its index.
        queries: What is asked, at least one.
        k: Hits that the overlap looks at.
        known: What was measured before, on the same queries.
        on_progress: Called after every submodel that was measured.

    Attributes:
        scores: What is known, by submodel.
        scales: Of each submodel that asked, how its scores translate into the full encoder's.
        full: The queries, embedded at full size.
    """

    def __init__(
        self,
        retriever: Retriever,
        queries: Queries,
        k: int = 10,
        *,
        known: Mapping[Submodel, Score] | None = None,
        on_progress: Callable[[], object] | None = None,
    ) -> None:
        self._model = whole(retriever.encoder)
        self._retriever, self._queries, self._k = retriever, queries, k
        self._on_progress = on_progress
        self.scores: dict[Submodel, Score] = dict(known or {})
        self.full = embed(self._model, queries.pixels)
        nearest, scores = find_others(
            retriever.index, self.full, queries.wanted.own, max(k, _NEIGHBOURS)
        )
        self._reference, self._reference_scores = nearest[:, :k], scores[:, :k]
        self.scales: dict[Submodel, ScoreScale] = {}
        self._neighbours = _centred(retriever, nearest[:, :_NEIGHBOURS])

    @property
    def config(self) -> MatViTConfig:
        """The model that submodels are cut from."""
        return self._model.config

    @property
    def rounded(self) -> list[Submodel]:
        """The trained sizes and S~ in 8 bits; none if what runs the encoder cannot."""
        if not self._model.runtime.has_int8:
            return []
        sizes = [*trained_sizes(self.config), parse_submodel(self.config, "S~")]
        return [replace(each, int8=True) for each in dict.fromkeys(sizes)]

    @property
    def searched(self) -> dict[Submodel, Score]:
        """Submodels that have asked the index, cheapest first."""
        asked = [each for each, score in self.scores.items() if score.overlap is not None]
        asked.sort(key=lambda each: (count_macs(self.config, each), each.sort_key))
        return {submodel: self.scores[submodel] for submodel in asked}

    def distortions(self, submodels: Iterable[Submodel]) -> list[float]:
        """Embed the queries with submodels, without asking the index.

        Returns:
            Neighbour distortion of each.
        """
        wanted = list(submodels)
        for submodel, vectors in self._embed(wanted, lambda _: True):
            self.scores[submodel] = Score(distortion=self._distortion(vectors))
        return [self.scores[submodel].distortion for submodel in wanted]

    def ask(self, submodels: Iterable[Submodel]) -> list[Score]:
        """Ask the index with submodels."""
        wanted, index = list(submodels), self._retriever.index
        for submodel, vectors in self._embed(wanted, lambda score: score.overlap is not None):
            rows, scores = find_others(index, vectors, self._queries.wanted.own, self._k)
            if (scale := ScoreScale.fit(scores, self._reference_scores)) is not None:
                self.scales[submodel] = scale
            self.scores[submodel] = Score(
                distortion=self._distortion(vectors),
                overlap=metrics.summarize(metrics.overlap(rows, self._reference, self._k)).mean,
                hit_rate=self._hit_rate(rows),
            )
        return [self.scores[submodel] for submodel in wanted]

    def _embed(
        self, submodels: list[Submodel], is_enough: Callable[[Score], bool]
    ) -> Iterable[tuple[Submodel, Float32[ndarray, "queries dim"]]]:
        """Embed with those of which not enough is known."""
        missing = [
            each
            for each in submodels
            if each not in self.scores or not is_enough(self.scores[each])
        ]
        for pair in embed_each(self._model, self._queries.pixels, missing):
            yield pair
            if self._on_progress is not None:
                self._on_progress()

    def _distortion(self, vectors: Float32[ndarray, "queries dim"]) -> float:
        moved = np.einsum("qd,qnd->qn", vectors - self.full, self._neighbours)
        return float((moved**2).mean())

    def _hit_rate(self, rows: Int64[ndarray, "queries k"]) -> float | None:
        values = hits(self._retriever, rows, self._queries)
        return None if values is None else metrics.summarize(values).mean


def _centred(
    retriever: Retriever, rows: Int64[ndarray, "queries neighbours"]
) -> Float32[ndarray, "queries neighbours dim"]:
    """Stored vectors of images, less their mean; zero for row -1."""
    there = (rows >= 0)[:, :, None]
    flat = retriever.index.embeddings[np.maximum(rows, 0).ravel()]
    vectors = np.where(there, flat.reshape(*rows.shape, -1), 0)
    mean = vectors.sum(axis=1, keepdims=True) / np.maximum(there.sum(axis=1, keepdims=True), 1)
    return np.where(there, vectors - mean, 0).astype(np.float32)


def hits(
    retriever: Retriever, rows: Int64[ndarray, "queries k"], queries: Queries
) -> Float32[ndarray, " queries"] | None:
    """Whether the first hit of each query has its label, NaN for none; None without labels."""
    wanted = queries.wanted
    if not (wanted.total > 0).any():
        return None
    labels = np.append(retriever.index.labels, -1)
    return metrics.hit_rate(metrics.relevance(labels[rows], wanted.labels), wanted.total, 1)
