"""What of a corpus an index does not hold yet, and what it holds under another name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64
from numpy import ndarray

from indexing.corpus.corpus import Corpus
from indexing.corpus.originals import complaints
from indexing.records import NEW, UNKNOWN, Failure, is_below
from indexing.store.embeddings import Embeddings
from indexing.store.rows import StoredRows, column

_DIGITS = 16  # of a hash, which fit in 64 bits; the rest is compared one by one


def corpus_names(corpus: Corpus) -> pa.Array:
    """Names of all images of a corpus.

    Raises:
        ValueError: If two have the same, so that nobody could tell which of them is indexed.
    """
    names = corpus.names
    refuse_shared_names(names, f"images in {corpus.root}")
    return names


def refuse_shared_names(names: pa.Array | pa.ChunkedArray, what: str) -> None:
    """Refuse images that share a name."""
    if pc.count_distinct(names).as_py() < len(names):
        counts = pc.value_counts(names)
        shared = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise ValueError(
            f"several {what} are called {shared!r}, so changes cannot be told apart; "
            "build a new index instead"
        )


class Changes:
    """Compares a corpus with the rows of an index, staged ones included.

    A file whose size and time of change are those that were stored is taken to be unchanged,
    unless all are to be read again.

    Args:
        corpus: The images as they are now.
        names: Of all of them; see `corpus_names`.
        rows: What is stored.
        failures: What could not be read, with the place of its shard among those of `rows`;
            -1 for what the searched index lists.
        retry_failed: Try again what the searched index lists as failed.
        forgotten: Names of images to leave out.
        rehash: Read the files that seem unchanged, to see whether their content is.
        progress: Show a progress bar on stderr while they are read.

    Attributes:
        todo: int64 places in the corpus of the images to read, ascending.
    """

    def __init__(
        self,
        corpus: Corpus,
        names: pa.Array,
        rows: StoredRows,
        failures: Iterable[tuple[int, Failure]],
        *,
        retry_failed: bool,
        forgotten: Sequence[str] = (),
        rehash: bool = False,
        progress: bool = False,
    ) -> None:
        self._corpus, self._rows = corpus, rows
        self._live = np.sort(rows.live)  # the later row of a name counts
        paths = rows.metadata.column("path").cast(names.type)
        paths = paths.take(pa.array(self._live)).combine_chunks()
        place = pc.index_in(names, value_set=paths[::-1]).fill_null(UNKNOWN).to_numpy()
        held = np.where(place >= 0, self._live[::-1][place], UNKNOWN)
        known = self._is_known(names, held, failures, retry_failed)
        if rehash:
            known[self._replaced(np.flatnonzero(known & (held >= 0)), held, progress)] = False
        left_out = pc.is_in(names, value_set=pa.array(forgotten, names.type))
        known |= left_out.to_numpy(zero_copy_only=False)
        self.todo = np.flatnonzero(~known)
        self._free = self._freed(names, paths, held)
        self._keys, self._by_key = self._index_hashes()
        self._kept: set[int] = set()

    @property
    def embeddings(self) -> Embeddings:
        """Of the rows that are stored."""
        return self._rows.embeddings

    def trace(
        self, columns: pa.RecordBatch, next_id: int
    ) -> tuple[Int64[ndarray, " images"], list[int]]:
        """Find out of images that were read which of them are stored, maybe under other names.

        Args:
            columns: What is known about them, as `RECORDS` says.
            next_id: For the first that cannot keep an id.

        Returns:
            Stored row of the same content, `NEW` if there is none, and the id of each.
        """
        names, digests = (columns[name].to_pylist() for name in ("path", "sha256"))
        rows = list(map(self._row_of, names, digests))
        ids: list[int] = []
        for name, row in zip(names, rows, strict=True):
            keeps = row != NEW and self._keep_id(row, name)
            ids.append(int(self._rows.ids[row]) if keeps else next_id)
            next_id += not keeps
        return np.array(rows, dtype=np.int64), ids

    def _is_known(
        self,
        names: pa.Array,
        held: Int64[ndarray, " images"],
        failures: Iterable[tuple[int, Failure]],
        retry_failed: bool,
    ) -> Bool[ndarray, " images"]:
        """Whether each image of the corpus was already read as it is now."""
        sizes = column(self._rows.metadata, "bytes")
        times = column(self._rows.metadata, "mtime_ns")
        known = np.zeros(len(names), dtype=bool)
        for index in np.flatnonzero(held >= 0):
            stored = int(sizes[held[index]]), int(times[held[index]])
            known[index] = _same(self._corpus.stamp(int(index)), stored)
        shards = np.append(self._rows.shard_of_rows(), UNKNOWN)  # row -1 is in shard -1
        failed = list(failures)
        found = pc.index_in(pa.array([f.path for _, f in failed], names.type), value_set=names)
        for (shard, failure), index in zip(failed, found.to_pylist(), strict=True):
            if index is None or shards[held[index]] > shard:
                continue
            stamp = self._corpus.stamp(index)
            again = retry_failed and shard == UNKNOWN
            known[index] = not again and _same(stamp, (failure.bytes, failure.mtime_ns))
        return known

    def _replaced(
        self, images: Int64[ndarray, " known"], held: Int64[ndarray, " images"], progress: bool
    ) -> list[int]:
        """Images whose content is not the stored one although size and time are."""
        digests = self._rows.metadata.column("sha256")

        def check(image: int) -> None:
            stored = digests[int(held[image])].as_py()
            if hashlib.sha256(self._corpus.read(image)).hexdigest() != stored:
                raise ValueError("it has changed")

        found = complaints(check, images.tolist(), doing="comparing", progress=progress)
        return [image for image, _ in found]

    def _freed(
        self, names: pa.Array, paths: pa.Array, held: Int64[ndarray, " images"]
    ) -> Bool[ndarray, " rows"]:
        """Whether the name of each stored row no longer stands for its image."""
        gone = ~pc.is_in(paths, value_set=names).to_numpy(zero_copy_only=False)
        free = np.ones(len(self._rows.ids), dtype=bool)
        free[held[held >= 0]] = False
        free[self._live[gone]] = True
        free[self._live[is_below(paths, self._corpus.unlisted)]] = False
        sizes = column(self._rows.metadata, "bytes")
        for index in self.todo[held[self.todo] >= 0]:
            # A file of the same size may just have been touched, and one that is out of reach may
            # come back as it was: then nobody else gets its id.
            size, time = self._corpus.stamp(int(index))
            free[held[index]] = time != UNKNOWN and size != sizes[held[index]]
        return free

    def _index_hashes(self) -> tuple[ndarray, Int64[ndarray, " live"]]:
        digests = self._rows.metadata.column("sha256")
        parts = pc.utf8_slice_codeunits(digests, 0, _DIGITS).take(pa.array(self._live))
        keys = np.array([int(part, 16) for part in parts.to_pylist()], dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        return keys[order], self._live[order]

    def _row_of(self, path: str, sha256: str) -> int:
        """Find a stored row of the same image: under the same name, or under one that is free."""
        rows = self._rows_with(sha256)
        names = self._rows.metadata.column("path")
        same = [row for row in rows if names[row].as_py() == path]
        free = [row for row in rows if self._free[row]]
        return next(iter((*same, *free, *rows)), NEW)

    def _keep_id(self, row: int, path: str) -> bool:
        """Whether an image found as `path` keeps the id of `row`; nothing else may afterwards."""
        same_name = self._rows.metadata.column("path")[row].as_py() == path
        mine = row not in self._kept and (same_name or bool(self._free[row]))
        self._free[row] = False
        self._kept |= {row} if mine else set()
        return mine

    def _rows_with(self, sha256: str) -> Sequence[int]:
        key = np.uint64(int(sha256[:_DIGITS], 16))
        first, end = (np.searchsorted(self._keys, key, side) for side in ("left", "right"))
        digests = self._rows.metadata.column("sha256")
        rows = (int(row) for row in self._by_key[first:end])
        return [row for row in rows if digests[row].as_py() == sha256]


def _same(stamp: tuple[int, int], stored: tuple[int, int]) -> bool:
    """Whether size and time are those that were stored; an unknown size is no difference."""
    (size, time), (stored_size, stored_time) = stamp, stored
    return time == stored_time != UNKNOWN and (size in (stored_size, UNKNOWN))
