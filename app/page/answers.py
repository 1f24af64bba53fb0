"""Answers of an index, each found once."""

from __future__ import annotations

from threading import Lock

from PIL import Image

from app.page.bounded import Bounded
from app.page.query import Query
from matvit.preprocess import ImageLike
from retrieval import Hits, Retriever

KEPT = 2048
"""Answers of one index that are kept: less than 20 MB."""

_DECODED = 16


class Answers:
    """Asks an index, and remembers what it said and how long that took.

    A query is decoded once, whatever number of submodels it is asked with. The first question of a
    submodel is asked twice, since it selects kernels and fills caches. One question is asked at a
    time, so that its milliseconds are its own.

    Args:
        retriever: The index and its encoder.
        kept: Most answers to remember.
    """

    def __init__(self, retriever: Retriever, kept: int = KEPT) -> None:
        self._retriever = retriever
        self._kept: Bounded[tuple[str, str, int], Hits] = Bounded(kept)
        self._decoded: Bounded[str, ImageLike] = Bounded(_DECODED)
        self._warm: set[str] = set()
        self._one_at_a_time = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def to(self, query: Query, submodel: str, k: int) -> Hits:
        """Find the k images of the index most similar to the query.

        Raises:
            ValueError: If the query cannot be read or the submodel is not one of the encoder's.
        """
        key = (query.digest, submodel, k)
        return self._kept.get(key, lambda: self._ask(query, submodel, k))

    def _ask(self, query: Query, submodel: str, k: int) -> Hits:
        image = self._decoded.get(query.digest, lambda: self._decode(query.data))
        with self._one_at_a_time:
            if submodel not in self._warm:
                self._retriever.search(image, submodel, k)
                self._warm.add(submodel)
            return self._retriever.search(image, submodel, k)

    def _decode(self, data: bytes) -> ImageLike:
        """Decode what comes out the same when it is decoded again; leave alone all else."""
        preprocess = self._retriever.encoder.preprocess
        pixels = preprocess.pixels(data)
        return Image.fromarray(pixels) if preprocess.crop_pct == 1 else data
