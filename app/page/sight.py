"""A query as a person sees it and as the encoder does."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np
from jaxtyping import UInt8

from app.page.bounded import Bounded
from app.page.pictures import as_seen, portrait
from app.page.query import Query
from matvit import Preprocess

KEPT_BYTES = 16_000_000
"""Sights that are kept: about a hundred."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What a query looks like.

    Attributes:
        whole: A JPEG file of all of it.
        seen: A PNG file of what the encoder sees, every pixel a square.
        pixels: The same as the encoder gets it.
    """

    whole: bytes
    seen: bytes
    pixels: UInt8[np.ndarray, "height width 3"]

    @property
    def bytes(self) -> int:
        """What keeping it costs."""
        return len(self.whole) + len(self.seen) + self.pixels.nbytes


class Sights:
    """Decodes queries, each once, however often the page is drawn again.

    One at a time: a large image takes much memory while it is decoded, and two visitors must not
    make it twice as much.

    Args:
        preprocess: How the encoder looks at an image.
        kept_bytes: Most that is kept.
    """

    def __init__(self, preprocess: Preprocess, kept_bytes: int = KEPT_BYTES) -> None:
        self._preprocess = preprocess
        self._kept: Bounded[str, Sight] = Bounded(kept_bytes, lambda sight: sight.bytes)
        self._one_at_a_time = Lock()

    def of(self, query: Query) -> Sight:
        """Look at a query.

        Raises:
            ValueError: If it cannot be read, or has too many pixels.
        """
        return self._kept.get(query.digest, lambda: self._in_turn(query))

    @property
    def used_bytes(self) -> int:
        """What is kept now."""
        return self._kept.used

    def _in_turn(self, query: Query) -> Sight:
        with self._one_at_a_time:  # somebody may have looked at it in the meantime
            return self._kept.get(query.digest, lambda: self._look(query.data))

    def _look(self, data: bytes) -> Sight:
        pixels = self._preprocess.pixels(data)
        return Sight(whole=portrait(data), seen=as_seen(pixels), pixels=pixels)
