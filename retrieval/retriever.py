"""Searching an index with an image, through any submodel of the encoder that built it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from indexing import Corpus, ImageIndex
from matvit import Encoder, Granularity, ImageLike, Submodel, count_macs, embed
from retrieval.choosing import Choosing
from retrieval.escalation import AUTO
from retrieval.hits import Hit, Hits

if TYPE_CHECKING:
    from retrieval.tuning.record import Tuning


_TOGETHER = 256


class Retriever(Choosing):
    """An index and the encoder that asks it.

    Threads can search with different submodels at once.

    Args:
        encoder: The encoder that built the index, or a submodel extracted from it.
        index: The images to search.

    Raises:
        IndexMismatchError: If the index was built by another encoder or preprocessing.
    """

    def __init__(self, encoder: Encoder, index: ImageIndex) -> None:
        index.check_encoder(encoder)
        super().__init__(encoder, index)

    def search(
        self,
        image: ImageLike,
        submodel: Submodel | Granularity | str | None = None,
        k: int = 10,
        *,
        max_gmacs: float | None = None,
        max_ms: float | None = None,
        min_recall: float | None = None,
        calibrated: bool = False,
    ) -> Hits:
        """Find the k most similar images; see `search_batch`."""
        (hits,) = self.search_batch(
            [image],
            submodel,
            k,
            max_gmacs=max_gmacs,
            max_ms=max_ms,
            min_recall=min_recall,
            calibrated=calibrated,
        )
        return hits

    def search_batch(
        self,
        images: Sequence[ImageLike],
        submodel: Submodel | Granularity | str | None = None,
        k: int = 10,
        *,
        max_gmacs: float | None = None,
        max_ms: float | None = None,
        min_recall: float | None = None,
        calibrated: bool = False,
    ) -> list[Hits]:
        """Find the k most similar images of each query, all embedded together.

        Args:
            images: Paths, bytes of image files, or Pillow images.
            submodel: What embeds the queries, such as `"S"` or `"4xS,2xXL"`; None for the full
                encoder. With `"auto"` each query starts small and goes on if it is not sure.
            k: Hits per query; an index with fewer images returns all it has.
            max_gmacs: Instead of a submodel, a budget; see `choose`.
            max_ms: The same.
            min_recall: The same.
            calibrated: Give the scores on the full encoder's scale, so that a threshold means the
                same whatever submodel answers; see `ScoreScale`. Needs a tuned index.

        Returns:
            One answer per query, in order.

        Raises:
            FileNotFoundError: If there is no file at a path.
            ValueError: If an image cannot be read, the submodel is not one of the encoder's, k is
                below 1, both a submodel and a budget are given, nothing meets the budget, or the
                index was never tuned and a budget or `"auto"` needs it.
            IndexMismatchError: If the encoder has changed since the index was built.
        """
        # Training or loading can change the weights under a retriever; checking is cheap.
        self.index.check_encoder(self.encoder)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        budget = (max_gmacs, max_ms, min_recall)
        if budget != (None, None, None):
            if submodel is not None:
                raise ValueError(f"give a submodel or a budget, not both; got {submodel} and one")
            submodel = self.choose(*budget)
        if submodel == AUTO:
            self._tuned()  # read, or refused, once for all snapshots
            found = self._at_one_generation()._search_auto(images, k)
        else:
            chosen = self.encoder.submodel(submodel)
            found = self._at_one_generation()._search_with(chosen, images, k)
        return [self._calibrate(hits) for hits in found] if calibrated else found

    def _at_one_generation(self) -> Retriever:
        """The same with an index that no other thread moves on while it answers."""
        same = copy(self)
        same.index = self.index.snapshot()
        return same

    def _search_with(self, chosen: Submodel, images: Sequence[ImageLike], k: int) -> list[Hits]:
        """Ask with one submodel."""
        if not images:
            return []
        pixels = self._decode(images)
        start = perf_counter()
        vectors = embed(self.encoder, pixels, chosen)
        embedded = perf_counter()
        ids, scores = self.search_vectors(vectors, k)
        searched = perf_counter()
        return [
            Hits(
                query=_name(image),
                submodel=str(chosen),
                macs=count_macs(self.encoder.config, chosen),
                encode_ms=1000 * (embedded - start) / len(images),
                search_ms=1000 * (searched - embedded) / len(images),
                hits=self._hits(*answer),
            )
            for image, *answer in zip(images, ids, scores, strict=True)
        ]

    def tune(self, queries: Corpus | None = None, **settings: Any) -> Tuning:  # noqa: ANN401
        """Measure which submodels are worth asking with; see `retrieval.tuning.tuner.tune`."""
        from retrieval.tuning.tuner import tune

        return tune(self, queries, **settings)

    def warm_up(self, submodel: Submodel | Granularity | str | None = None) -> None:
        """Search once for nothing: the first search allocates memory and loads kernels."""
        self.search(Image.new("RGB", (64, 64)), submodel, k=1)

    def search_vectors(
        self, vectors: Float32[np.ndarray, "queries dim"], k: int = 10
    ) -> tuple[Int64[np.ndarray, "queries k"], Float32[np.ndarray, "queries k"]]:
        """Find the k most similar images of queries that are already embedded.

        Returns:
            Ids and scores, best first; `min(k, len(index))` columns.

        Raises:
            ValueError: If k is below 1, or the vectors have another dimension than the index.
        """
        return self.index.search(vectors, k)

    def _search_auto(self, images: Sequence[ImageLike], k: int) -> list[Hits]:
        """Let each query choose; see `retrieval.escalation`."""
        from retrieval.escalation import RANKS, escalate
        from retrieval.tuning.trial import whole

        model, escalation = whole(self), self._tuned().escalation
        if escalation is None:
            raise ValueError(
                f"tuning {self.index.path} found no per-query choice worth making; name a "
                "submodel or a budget, or tune with a larger max_loss"
            )
        if not images:
            return []
        if len(images) > _TOGETHER:
            starts = range(0, len(images), _TOGETHER)
            parts = (images[start : start + _TOGETHER] for start in starts)
            return [hits for part in parts for hits in self._search_auto(part, k)]
        answers = escalate(
            escalation,
            model,
            self._decode(images),
            lambda vectors: self.search_vectors(vectors, max(k, RANKS)),
            (lambda ids: self.index.labels[self.index.rows_of(ids)])
            if self.index.class_names
            else None,
        )
        return [
            Hits(
                query=_name(image),
                submodel=answer.steps[-1].submodel,
                macs=sum(step.macs for step in answer.steps),
                encode_ms=sum(step.encode_ms for step in answer.steps),
                search_ms=sum(step.search_ms for step in answer.steps),
                hits=self._hits(answer.ids[:k], answer.scores[:k]),
                steps=answer.steps,
            )
            for image, answer in zip(images, answers, strict=True)
        ]

    def _decode(self, images: Sequence[ImageLike]) -> UInt8[np.ndarray, "images height width 3"]:
        """Decode queries as the corpus was decoded."""
        decoded = []
        for number, image in enumerate(images, start=1):
            try:
                decoded.append(self.encoder.preprocess.pixels(image))
            except ValueError as error:
                raise ValueError(f"{_name(image) or f'query {number}'}: {error}") from error
        return np.stack(decoded)

    def _hits(
        self, ids: Int64[np.ndarray, " k"], scores: Float32[np.ndarray, " k"]
    ) -> tuple[Hit, ...]:
        """Look up what was found."""
        names = self.index.class_names
        found = zip(ids, scores, self.index.rows_of(ids), strict=True)
        return tuple(
            Hit(
                rank=rank,
                id=int(number),
                path=self.index.path_of(row),
                score=float(score),
                label=names[label] if names and (label := self.index.labels[row]) >= 0 else None,
            )
            for rank, (number, score, row) in enumerate(found, start=1)
        )


def _name(image: ImageLike) -> str | None:
    """What to call a query: the path it was read from, if there is one."""
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "")) or None
    return None if isinstance(image, bytes) else str(image)
