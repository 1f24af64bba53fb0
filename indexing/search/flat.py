"""Exact search: every stored vector is compared with every query, by FAISS."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, cast

import faiss
import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from numpy import ndarray

from indexing.search.faiss_file import write_faiss
from indexing.search.making import reserve
from indexing.search.scoring import SPARE, best_first, pair_scores, rounding
from indexing.store.embeddings import Embeddings
from indexing.store.files import StoredFile, check_hash, damaged

_ROWS_PER_ADD = 16_384
_QUERIES_PER_SEARCH = 1_024
_PAIRS_PER_SEARCH = 1 << 22


class FlatIndex:
    """A FAISS Flat inner-product index with ids of our own.

    FAISS promises neither an order among equal scores nor the same last bit for the same pair:
    a large batch of queries goes through another kernel than a small one. So FAISS only proposes
    candidates here, more than asked for; their scores are computed again one pair at a time, and
    fetching goes on until no vector left out could still be among the best.

    Args:
        faiss_index: An `IndexIDMap` around an `IndexFlatIP`, holding unit vectors.

    Attributes:
        ids: int64, shape (images,), in the order they were added.
    """

    def __init__(self, faiss_index: faiss.IndexIDMap) -> None:
        self.ids: Int64[ndarray, " images"] = faiss.vector_to_array(faiss_index.id_map)
        self._flat = faiss.downcast_index(faiss_index.index)
        self._faiss_index = faiss_index  # owns the memory behind `_flat`

    @classmethod
    def build(cls, embeddings: Embeddings, ids: Int64[ndarray, " images"]) -> FlatIndex:
        """Index all embeddings under the given ids."""
        faiss_index = faiss.IndexIDMap(faiss.IndexFlatIP(embeddings.shape[1]))
        reserve(faiss.downcast_index(faiss_index.index), len(embeddings))
        for start in range(0, len(embeddings), _ROWS_PER_ADD):
            run = slice(start, start + _ROWS_PER_ADD)
            faiss_index.add_with_ids(embeddings[run], ids[run])
        return cls(faiss_index)

    @classmethod
    def read(cls, folder: Path, file: StoredFile, dim: int) -> FlatIndex:
        """Load an index, once it is certain to be one that `write` wrote.

        FAISS notices neither flipped bits nor trailing bytes, and some kinds of index make it
        open further files.

        Raises:
            ValueError: If the file is damaged or holds something else.
        """
        check_hash(folder, file)
        path = folder / file.name
        _check_kind(path)
        try:
            faiss_index = cast("faiss.IndexIDMap", faiss.read_index(str(path)))
        except RuntimeError as error:
            raise damaged(path, "FAISS cannot read it") from error
        index = cls(faiss_index)
        if {faiss_index.ntotal, index._flat.ntotal, len(index.ids)} != {file.rows}:
            raise damaged(path, f"it holds {index._flat.ntotal} vectors, not {file.rows}")
        if {faiss_index.d, index._flat.d} != {dim}:
            raise damaged(path, f"its vectors have dimension {index._flat.d}, not {dim}")
        return index

    def write(self, stream: BinaryIO) -> None:
        """Write the index to a stream, which unlike FAISS's own files notices a full disk."""
        write_faiss(self._faiss_index, stream)

    def search(
        self, queries: Float32[ndarray, "queries dim"], k: int
    ) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """Find the k nearest images of each query, best first, equal scores by smaller id.

        Args:
            queries: Unit vectors, as `unit_queries` returns them.
            k: Within 1..number of images.
        """
        ids = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        pending = np.arange(len(queries))
        fetch = min(k + SPARE, len(self.ids))
        while len(pending):
            block = min(_QUERIES_PER_SEARCH, max(1, _PAIRS_PER_SEARCH // fetch))
            settled = np.empty(len(pending), dtype=bool)
            for start in range(0, len(pending), block):
                run = pending[start : start + block]
                found = self._search_block(queries[run], k, fetch)
                ids[run], scores[run], settled[start : start + block] = found
            pending = pending[~settled]
            fetch = min(4 * fetch, len(self.ids))
        return ids, scores

    def _search_block(
        self, queries: Float32[ndarray, "queries dim"], k: int, fetch: int
    ) -> tuple[
        Int64[ndarray, "queries k"], Float32[ndarray, "queries k"], Bool[ndarray, " queries"]
    ]:
        """Best k of the candidates FAISS proposes, and whether these are the best of all."""
        proposed, rows = self._flat.search(queries, fetch)
        scores = pair_scores(queries, self._flat.get_xb(), rows)  # type: ignore[attr-defined]
        ids, best = best_first(self.ids[rows], scores, k)
        settled = (best[:, -1] - proposed[:, -1] > rounding(self._flat.d)) | (
            fetch == len(self.ids)
        )
        return ids, best, settled


def unit_queries(vectors: Float[ndarray, "queries dim"], dim: int) -> Float32[ndarray, "..."]:
    """Check queries, since the guards of FAISS are bare asserts, and scale them to length one.

    Returns:
        float32 of shape (queries, dim).

    Raises:
        ValueError: If they are of another shape or type, not finite, or zero.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ValueError(f"queries must have shape (queries, {dim}), got {vectors.shape}")
    if vectors.dtype.kind != "f":
        raise ValueError(f"queries must be floating point, got {vectors.dtype}")
    exact = vectors.astype(np.float64)  # so that no float32 query overflows its norm
    norms = np.sqrt(np.vecdot(exact, exact))
    for row in np.flatnonzero(~((norms > 0) & (norms < np.inf))):
        raise ValueError(
            f"query {row} is zero or not finite, so it has no direction; "
            "check the encoder that made it"
        )
    return np.ascontiguousarray(exact / norms[:, np.newaxis], dtype=np.float32)


def _check_kind(path: Path) -> None:
    """Refuse a FAISS file whose first bytes are not those of a Flat index inside an id map."""
    with path.open("rb") as stream:
        header = stream.read(41)
    if (header[:4], header[37:]) != (b"IxMp", b"IxFI"):
        raise damaged(path, "it does not hold an exact index with ids")
