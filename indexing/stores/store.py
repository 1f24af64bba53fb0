"""A vector store that is asked as an index is: it proposes candidates, their scores are ours."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64
from numpy import ndarray

from indexing.search.engine import Queries, Reach
from indexing.search.request import TARGET, Effort
from indexing.store.rows import column
from indexing.stores.rows import Header, images_of

LANCE, QDRANT = ".lance", ".qdrant"
"""How the name of a Lance table ends, and that of a folder of Qdrant's."""

_NORM_TOLERANCE = 1e-3

Proposed = tuple[Float32[ndarray, " hits"], Int64[ndarray, " hits"]]


class Store(ABC):
    """Rows of an index in a vector store; an `Engine` that proposes what the store finds.

    Attributes:
        where: What people call it.
        header: What its rows are of.
        images: What is known of each image, by id; as `IndexedImages.metadata`.
        ids: Of these.
        places: Where each of them came among the rows that were read.
        effort: How hard to search; None for without leaving anything out.
    """

    labels_are_rows = False
    is_graph = False
    code_size = 0
    max_fetch = int(np.iinfo(np.int32).max)
    float_table = None
    lists = 0
    error = 0.0
    is_exact = True

    def __init__(self, where: str, header: Header) -> None:
        self.where, self.header = where, header
        rows = self.read_rows()
        self.images = images_of(where, rows, header)
        self.ids: Int64[ndarray, " images"] = column(self.images, "id")
        self.places: Int64[ndarray, " images"] = np.argsort(column(rows, "id"), kind="stable")
        self.code_size = 4 * header.encoder.dim
        self.effort: Effort | None = None

    @property
    def everything(self) -> Effort:
        """See `Engine`."""
        return Effort(
            nprobe=self.lists, ef_search=len(self.ids) if self.is_graph else 0, rescore=1,
            target=TARGET, recall=1.0, queries=0,
        )  # fmt: skip

    @abstractmethod
    def read_rows(self) -> pa.Table:
        """Return all columns of all rows but the vectors."""

    @abstractmethod
    def read_vectors(
        self, rows: Int64[ndarray, " rows"]
    ) -> tuple[Int64[ndarray, " found"], Float32[ndarray, "found dim"]]:
        """Return ids and vectors of some rows of `images`, in any order."""

    @abstractmethod
    def ask(self, queries: Float32[ndarray, "queries dim"], reach: Reach) -> list[Proposed]:
        """Return inner products, as far as the store computes them, and ids of each query."""

    def propose(
        self, queries: Queries, reach: Reach
    ) -> tuple[Float32[ndarray, "queries fetch"], Int64[ndarray, "queries fetch"]]:
        """Return estimated scores and ids, best first; -1 where there is no candidate.

        What was added to the store since it was opened is not known, and left out.
        """
        assert isinstance(queries, ndarray)
        shape = (len(queries), reach.fetch)
        scores = np.full(shape, -np.inf, dtype=np.float32)
        ids = np.full(shape, -1, dtype=np.int64)
        for row, (values, found) in enumerate(self.ask(queries, reach)):
            known = np.flatnonzero(np.isin(found, self.ids))
            order = known[np.argsort(-values[known], kind="stable")]
            scores[row, : len(order)], ids[row, : len(order)] = values[order], found[order]
        return scores, ids

    @property
    def vectors(self) -> StoredVectors:
        """The vectors, a row for each of `images`."""
        return StoredVectors(self)


class StoredVectors:
    """Vectors that lie in a store, read on demand; see `Vectors`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.shape = (len(store.ids), store.header.encoder.dim)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(
        self, rows: int | slice | Int64[ndarray, " rows"]
    ) -> Float32[ndarray, "... dim"]:
        """Read rows.

        Raises:
            IndexError: If a row number is outside the table.
            ValueError: If a row is gone, or is not a unit vector.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        flat = np.asarray(rows, dtype=np.int64).reshape(-1)
        if not len(flat):
            return np.empty((0, self.shape[1]), dtype=np.float32)
        if flat.min() < 0 or flat.max() >= len(self):
            raise IndexError(f"row numbers must be within 0..{len(self) - 1}, got {rows!r:.80}")
        wanted, places = np.unique(flat, return_inverse=True)
        vectors = self._read(wanted)[places]
        return vectors.reshape(self.shape[1]) if isinstance(rows, int | np.integer) else vectors

    def _read(self, rows: Int64[ndarray, " rows"]) -> Float32[ndarray, "rows dim"]:
        """Read rows in ascending order, each once."""
        where, ids = self._store.where, self._store.ids[rows]
        found, vectors = self._store.read_vectors(rows)
        order = np.argsort(found, kind="stable")
        if not np.array_equal(found[order], ids):
            raise ValueError(
                f"{where} has changed since it was opened: of {len(ids)} images that it had, "
                f"{np.isin(ids, found).sum()} are there; open it again"
            )
        read = np.ascontiguousarray(vectors[order], dtype=np.float32)
        norms = np.linalg.norm(read, axis=1)
        for row in np.flatnonzero(~(np.abs(norms - 1) < _NORM_TOLERANCE)):  # NaN is caught too
            raise ValueError(
                f"{where} is damaged: the vector of image {ids[row]} has length {norms[row]}, "
                "wanted 1; write it again with `matvit index export`"
            )
        return read
