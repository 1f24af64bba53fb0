"""What queries should find in an index: the images of their class, but never themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int64

from indexing import ImageRecord, IndexedImages
from retrieval import metrics

_NONE = -1


class Wanted(NamedTuple):
    """What some queries should find.

    Attributes:
        own: Rows of the index that are the query itself, shape (queries, copies), -1 where a
            query has fewer copies than another.
        labels: Class of each query in the numbering of the index, -1 for none, shape (queries,).
        total: Images of that class other than the query itself, shape (queries,).
    """

    own: Int64[np.ndarray, "queries copies"]
    labels: Int64[np.ndarray, " queries"]
    total: Int64[np.ndarray, " queries"]


class GroundTruth:
    """The right answers of an index, by row number.

    Classes are matched by name, since a class has another number where the list of classes is
    another. A query of a class that the index does not have has no right answer.

    Args:
        index: The images that are searched.
        class_names: What the labels of the queries mean; None if they have none.
    """

    def __init__(self, index: IndexedImages, class_names: Sequence[str] | None) -> None:
        names = index.class_names
        self.has_labels = names is not None and class_names is not None
        number = {name: label for label, name in enumerate(names or [])}
        # Row -1 and label -1 mean none, and so does the last entry of each of these arrays.
        theirs = [number.get(name, _NONE) for name in class_names or []]
        self._label_in_index = np.array([*theirs, _NONE], dtype=np.int64)
        self._labels = np.append(index.labels, _NONE)
        labelled = index.labels[index.labels >= 0]
        self._count = np.append(np.bincount(labelled, minlength=len(number)), 0)
        self._sha256 = index.metadata.column("sha256")

    @property
    def most_relevant(self) -> int:
        """Images in the largest class, 0 without classes."""
        return int(self._count.max())

    def wanted(self, queries: Sequence[ImageRecord]) -> Wanted:
        """Look up what each of the queries should find."""
        own = rows_of_content(self._sha256, [query.sha256 for query in queries])
        labels = self._label_in_index[[query.label for query in queries]]
        own_relevant = (self._labels[own] == labels[:, None]) & (own >= 0)
        total = self._count[labels] - own_relevant.sum(axis=1)
        return Wanted(own, labels, np.where(labels >= 0, total, 0))

    def labels_of(
        self, rows: Int64[np.ndarray, "queries ranks"]
    ) -> Int64[np.ndarray, "queries ranks"]:
        """Class of each row, -1 for none; row -1 has none."""
        return np.asarray(self._labels[rows])


def rows_of_content(
    sha256: pa.ChunkedArray, digests: Sequence[str]
) -> Int64[np.ndarray, "queries copies"]:
    """Find the rows that hold the very files that are asked with.

    Args:
        sha256: Of the file of each row.
        digests: Of the files to find.

    Returns:
        A row per file, filled up with -1 where one has fewer copies than another.
    """
    distinct, query_of = np.unique(np.array(digests, dtype=str), return_inverse=True)
    place = pc.index_in(sha256, value_set=pa.array(distinct.tolist(), pa.string()))
    place = place.fill_null(_NONE).to_numpy()
    rows = np.flatnonzero(place >= 0)
    rows = rows[np.argsort(place[rows], kind="stable")]  # copies of one file side by side
    copies = np.bincount(place[rows], minlength=len(distinct))
    table = np.full((len(distinct), copies.max(initial=0)), _NONE, dtype=np.int64)
    table[np.arange(table.shape[1]) < copies[:, None]] = rows
    return np.asarray(table[query_of])


def find_others(
    index: IndexedImages,
    vectors: Float32[np.ndarray, "queries dim"],
    own: Int64[np.ndarray, "queries copies"],
    k: int,
) -> tuple[Int64[np.ndarray, "queries k"], Float32[np.ndarray, "queries k"]]:
    """Ask an index with queries that may be in it themselves, and leave those out.

    Args:
        index: The images that are searched.
        vectors: The queries, embedded.
        own: Rows that are the query itself; see `Wanted`.
        k: Hits per query.

    Returns:
        Rows, best first, and their scores; -1 and -inf where there are fewer.
    """
    ids, scores = index.search(vectors, k + own.shape[1])
    found = index.rows_of(ids)
    is_own = np.zeros(found.shape, dtype=bool)
    for copy in own.T:  # a table of all copies at once could be large
        is_own |= found == copy[:, None]
    rows = metrics.drop_self(found, own)[:, :k]
    # What was dropped moves to the end, as it does in `rows`.
    kept = -np.sort(np.where(is_own, np.inf, -scores), axis=1)[:, :k]
    missing = ((0, 0), (0, k - rows.shape[1]))  # an index may hold fewer than k images
    return (
        np.pad(rows, missing, constant_values=-1),
        np.pad(kept, missing, constant_values=-np.inf).astype(np.float32),
    )
