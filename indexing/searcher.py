"""What finds neighbours: the kinds of index, and hiding what was removed from all of them alike."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from indexing.embeddings import Embeddings
from indexing.flat import KIND, FlatIndex
from indexing.manifest import SearchRecord

_NONE = -1
_SPARE = 16
_GROWTH = 4


class Searcher(Protocol):
    """A search structure over vectors with ids, whatever its kind.

    Attributes:
        ids: int64, the ids of all vectors in it, in the order they were added.
    """

    ids: Int64[ndarray, " images"]

    def search(
        self, queries: Float32[ndarray, "queries dim"], k: int
    ) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """Find the k nearest images of each query, best first; id -1 where there are fewer."""

    def write(self, stream: BinaryIO) -> None:
        """Write the structure to a stream."""


def build_searcher(kind: str, embeddings: Embeddings, ids: Int64[ndarray, " images"]) -> Searcher:
    """Make a search structure of a kind over all rows of a table.

    Raises:
        ValueError: If the kind is unknown.
    """
    _check_kind(kind)
    return FlatIndex.build(embeddings, ids)


def read_searcher(folder: Path, record: SearchRecord, dim: int) -> Searcher:
    """Load the search structure that a manifest names.

    Raises:
        ValueError: If the kind is unknown, or the file is damaged or holds something else.
    """
    _check_kind(record.kind)
    return FlatIndex.read(folder, record.file, dim)


def _check_kind(kind: str) -> None:
    if kind != KIND:
        raise ValueError(f"the index is of kind {kind!r}; this program reads {KIND!r}")


class LiveSearcher:
    """Searches for what was not removed.

    FAISS's own selectors are ignored on a GPU and cost much in some kinds, so more is fetched
    than was asked for, and what was removed is left out: any kind of searcher will do.

    Args:
        searcher: Searches all vectors.
        live: Ids that may be found, ascending; all of them must be in `searcher`.

    Attributes:
        removed: How many vectors of `searcher` are hidden.
    """

    def __init__(self, searcher: Searcher, live: Int64[ndarray, " live"]) -> None:
        self._searcher = searcher
        self._live = live
        self.removed = len(searcher.ids) - len(live)

    def search(
        self, queries: Float32[ndarray, "queries dim"], k: int
    ) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """Find the k nearest images of each query that were not removed, best first.

        Args:
            queries: Unit vectors.
            k: Within 1..number of live images.
        """
        if not self.removed:
            return self._searcher.search(queries, k)
        ids = np.full((len(queries), k), _NONE, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        pending = np.arange(len(queries))
        fetch = k + min(self.removed, k + _SPARE)
        while len(pending):
            found, values = self._searcher.search(queries[pending], fetch)
            alive = self._is_live(found)
            # Stable: what is alive moves to the front, in the order it was found in.
            order = np.argsort(~alive, axis=1, kind="stable")[:, :k]
            kept = np.take_along_axis(alive, order, axis=1)
            ids[pending] = np.where(kept, np.take_along_axis(found, order, axis=1), _NONE)
            scores[pending] = np.where(kept, np.take_along_axis(values, order, axis=1), -np.inf)
            if fetch == len(self._searcher.ids):
                break
            pending = pending[~kept.all(axis=1)]
            fetch = min(_GROWTH * fetch, len(self._searcher.ids))
        return ids, scores

    def _is_live(self, ids: Int64[ndarray, "queries k"]) -> Bool[ndarray, "queries k"]:
        places = np.minimum(np.searchsorted(self._live, ids), len(self._live) - 1)
        return np.asarray(self._live[places] == ids)
