"""Answers of an index, each found once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from threading import Lock
from time import perf_counter

from PIL import Image

from app.options import AUTO
from app.page.bounded import Bounded
from app.page.link import MOST_HITS
from app.page.query import Query
from app.page.sight import Sights
from matvit import ImageLike
from retrieval import AutoRetriever, Hits, Retriever, Tuning

KEPT = 2048
"""Answers of one index that are kept: less than 20 MB."""

MOST = MOST_HITS + 1
"""Hits of every answer: those that can be shown, and the query itself."""

_TIMES, _ENOUGH_S = 3, 0.05


class Answers:
    """Asks an index, and remembers what it said and how long that took.

    Every question is asked for the most hits there may be, so that showing more or fewer of them
    asks nothing again. What is quick to answer is asked three times, for one measurement says
    little: the answer is the one that took the median time. Before its first question a submodel
    answers once for nothing, since that selects kernels and fills caches. One question is asked
    at a time, so that its milliseconds are its own.

    Args:
        retriever: The index and its encoder.
        sights: Queries that were decoded already.
        kept: Most answers to remember.
    """

    def __init__(self, retriever: Retriever, sights: Sights, kept: int = KEPT) -> None:
        self._retriever, self._sights = retriever, sights
        self._kept: Bounded[tuple[str, str], Hits] = Bounded(kept)
        self._warm: set[str] = set()
        self._one_at_a_time = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def to(self, query: Query, submodel: str, k: int) -> Hits:
        """Find the k images of the index most similar to the query.

        Raises:
            ValueError: If the query cannot be read, the submodel is not one of the encoder's, or
                k is above `MOST`.
        """
        if k > MOST:
            raise ValueError(f"at most {MOST} hits are kept of an answer, got k={k}")
        found = self._kept.get((query.digest, submodel), lambda: self._ask(query, submodel))
        return replace(found, hits=found.hits[:k])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every new question waiting while something else is timed."""
        with self._one_at_a_time:
            yield

    def _ask(self, query: Query, submodel: str) -> Hits:
        image = self._decoded(query)
        with self.alone():
            self._warm_up(image, submodel)
            start, found = perf_counter(), []
            for _ in range(_TIMES):
                found.append(self._search(image, submodel))
                if perf_counter() - start > _ENOUGH_S:
                    break
        found.sort(key=lambda hits: hits.encode_ms + hits.search_ms)
        return found[(len(found) - 1) // 2]

    def _warm_up(self, image: ImageLike, submodel: str) -> None:
        """Let a submodel answer for nothing; of `auto`, all that it may go on to."""
        if submodel in self._warm:
            return
        rungs = self._auto.escalation.ladder if submodel == AUTO else ()
        for name in (*rungs, submodel):
            if name not in self._warm:
                self._search(image, name)
                self._warm.add(name)

    def _search(self, image: ImageLike, submodel: str) -> Hits:
        if submodel == AUTO:
            return self._auto.search(image, MOST)
        return self._retriever.search(image, submodel, MOST)

    @cached_property
    def _auto(self) -> AutoRetriever:
        tuning = Tuning.of(self._retriever.index, self._retriever.encoder)
        return AutoRetriever(self._retriever, tuning)

    def _decoded(self, query: Query) -> ImageLike:
        """Take what comes out the same when it is decoded again; leave alone all else."""
        pixels = self._sights.of(query).pixels
        whole = self._retriever.encoder.preprocess.crop_pct == 1
        return Image.fromarray(pixels) if whole else query.data
