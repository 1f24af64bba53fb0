"""What finds neighbours: the kinds of index, and hiding what was removed from all of them alike."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from indexing.search import gpu
from indexing.search.faiss_file import check_layout, read_structure
from indexing.search.flat import FlatIndex
from indexing.search.kinds import FACTORY, KINDS, Kind, resolve_again
from indexing.search.request import EXACT, KindRequest
from indexing.search.searcher import AnnIndex
from indexing.store.embeddings import Embeddings
from indexing.store.files import store
from indexing.store.manifest import SearchRecord
from indexing.store.rows import StoredRows

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


def build_searcher(
    kind: Kind,
    embeddings: Embeddings,
    ids: Int64[ndarray, " images"],
    *,
    device: str = "cpu",
    progress: bool = False,
) -> Searcher:
    """Make a search structure of a kind over all rows of a table.

    Args:
        kind: As `resolve` returns it for so many rows.
        embeddings: Unit vectors.
        ids: Of the rows, ascending.
        device: `"auto"`, `"cpu"` or `"cuda"`: where to train and fill it.
        progress: Show a progress bar on stderr.

    Raises:
        ValueError: If there are too few rows for the kind, or the device cannot be had.
    """
    if kind.factory == EXACT:  # nothing to train
        return FlatIndex.build(embeddings, ids)
    return AnnIndex.build(embeddings, ids, kind, device=device, progress=progress)


def store_searcher(
    path: Path,
    generation: int,
    request: KindRequest,
    embeddings: Embeddings,
    ids: Int64[ndarray, " images"],
    *,
    device: str = "cpu",
    progress: bool = False,
) -> SearchRecord:
    """Make and store the search structure of a generation, of the kind that was asked for.

    If there are too few or too many images for it now, the record's `note` says so, and what was
    done instead. What will be searched on a GPU is also made on one, if there is one here.
    """
    kind, note = resolve_again(request, len(ids), embeddings.shape[1])
    if request.device == "cuda":
        device = "auto"
    searcher = build_searcher(kind, embeddings, ids, device=device, progress=progress)
    file = store(path, f"index/knn_g{generation}.faiss", len(ids), searcher.write)
    calibration = searcher.calibration if isinstance(searcher, AnnIndex) else None
    return SearchRecord(
        kind=kind.name,
        factory=kind.factory,
        calibration=calibration,
        request=request,
        note=note,
        file=file,
    )


def read_searcher(
    path: Path, record: SearchRecord, rows: StoredRows, *, device: str = "cpu", mmap: bool = False
) -> Searcher:
    """Load the search structure that a manifest names.

    Args:
        path: The index.
        record: What the manifest says about it.
        rows: Those it was made from are among them.
        device: `"auto"`, `"cpu"` or `"cuda"`: where to search.
        mmap: Leave the lists of an IVF kind on disk.

    Raises:
        ValueError: If the kind is unknown, the file is damaged or holds something else, or the
            device cannot be had.
    """
    kind, dim = _recorded_kind(record), rows.embeddings.shape[1]
    if kind.factory == EXACT and not gpu.resolve(device, kind, dim):
        check_layout(path / record.file.name)
        return FlatIndex.read(path, record.file, dim)
    stored = rows.hidden_too()
    return AnnIndex.read(
        path,
        record.file,
        dim,
        embeddings=rows.embeddings.take(stored),
        ids=rows.ids[stored],
        kind=kind,
        calibration=record.calibration,
        mmap=mmap,
        device=device,
    )


def check_searcher_file(path: Path, record: SearchRecord, dim: int) -> None:
    """Make sure that the file of a search structure, looked at alone, is what was written.

    Raises:
        ValueError: If the kind is unknown, or the file is damaged or holds something else.
    """
    if _recorded_kind(record).factory == EXACT:
        check_layout(path / record.file.name)
        FlatIndex.read(path, record.file, dim)
    else:
        read_structure(path, record.file, dim, mmap=False)


def _recorded_kind(record: SearchRecord) -> Kind:
    if record.kind not in (*KINDS, FACTORY):
        known = ", ".join(KINDS)
        raise ValueError(f"the index is of kind {record.kind!r}; this program reads {known}")
    return Kind(name=record.kind, factory=record.factory)


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
            k: At least 1; there are no more hits than live images.
        """
        k = min(k, len(self._live))
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
