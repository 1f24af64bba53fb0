"""Stored embeddings of all shards: mapped into memory, and only read if they are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float16, Float32, Int64
from numpy import ndarray
from numpy.lib.stride_tricks import as_strided

from indexing.store.files import StoredFile, damaged, map_file, values_of

_NORM_TOLERANCE = 0.01  # float16 leaves about 0.0005
_WIDENED_AT_ONCE = 32_000  # values, that stay in a processor's nearest cache
_SIGN_AND_VALUE = np.int32(-0x7000_2000)  # all bits but the three that a sign was copied into
_BIAS = np.float32(2.0**112)  # float32 counts exponents from 127, float16 from 15


class Vectors(Protocol):
    """A table of unit vectors that are read on demand, as `Embeddings` and vector stores have it.

    Attributes:
        shape: Rows and dimension.
    """

    shape: tuple[int, int]

    def __len__(self) -> int: ...

    def __getitem__(
        self, rows: int | slice | Int64[ndarray, " rows"]
    ) -> Float32[ndarray, "... dim"]:
        """Read a row, or some, as float32."""
        ...


class Embeddings:
    """The rows of all shards as one read-only table of unit vectors.

    `embeddings[rows]` takes a row number, a slice or an array of row numbers and returns float32
    of shape (dim,) or (rows, dim). The stored float16 values are off unit length by up to 0.05 %,
    enough to rank a near-duplicate above the image itself, so rows are normalised when read.

    All files are mapped at once, so the table stays readable when a writer removes them. A file is
    hashed before the first row is taken from it: damage is named, never served.

    Args:
        folder: The index.
        files: Embedding files in order.
        dim: Of the embeddings.

    Attributes:
        shape: Rows and dimension.

    Raises:
        ValueError: If a file does not hold float16 of the shape the manifest says.
    """

    def __init__(self, folder: Path, files: Sequence[StoredFile], dim: int) -> None:
        self._shards = MappedShards(folder, files, dim)
        self._rows: Int64[ndarray, " rows"] | None = None
        self.shape = (self._shards.rows, dim)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(
        self, rows: int | slice | Int64[ndarray, " rows"]
    ) -> Float32[ndarray, "... dim"]:
        """Read rows.

        Raises:
            IndexError: If a row number is outside the table.
            ValueError: If the file of a row is damaged, or the row is not a unit vector.
        """
        stored = self._stored(rows)
        vectors = _widened(self._shards[stored])
        norms = np.sqrt(np.vecdot(vectors, vectors))
        if not np.abs(norms - 1).max(initial=0) < _NORM_TOLERANCE:  # NaN is caught too
            row = int(stored[~(np.abs(norms - 1) < _NORM_TOLERANCE)][0])
            raise damaged(self._shards.path_of(row), f"row {row} is not a unit vector")
        vectors *= (1 / norms)[:, np.newaxis]  # a third of the time of a division
        return vectors.reshape(self.shape[1]) if isinstance(rows, int | np.integer) else vectors

    def raw(self, rows: slice | Int64[ndarray, " rows"]) -> Float16[ndarray, "rows dim"]:
        """Read rows as they are stored, to store them elsewhere without rounding them again.

        Raises:
            IndexError: If a row number is outside the table.
            ValueError: If the file of a row is damaged.
        """
        return self._shards[self._stored(rows)]

    def take(self, rows: Int64[ndarray, " rows"]) -> Embeddings:
        """Return a table of some of the rows, in the order given, on the same mapped files."""
        if are_all_in_order(rows, len(self)):
            return self
        view = object.__new__(Embeddings)
        view._shards = self._shards
        view._rows = rows if self._rows is None else self._rows[rows]
        view.shape = (len(rows), self.shape[1])
        return view

    def _stored(self, rows: int | slice | Int64[ndarray, " rows"]) -> Int64[ndarray, " rows"]:
        """Rows of the files."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        flat = np.asarray(rows, dtype=np.int64).reshape(-1)
        if (flat.view(np.uint64) >= len(self)).any():  # negative ones are huge then
            raise IndexError(f"row numbers must be within 0..{len(self) - 1}, got {rows!r:.80}")
        return flat if self._rows is None else self._rows[flat]


def are_all_in_order(rows: Int64[ndarray, " rows"], count: int) -> bool:
    """Whether these are all rows of a table, as they come: true of an index never updated."""
    return len(rows) == count and bool((rows == np.arange(count)).all())


def _widened(values: Float16[ndarray, "rows dim"]) -> Float32[ndarray, "rows dim"]:
    """The same values as float32, where they are finite; NumPy's own way takes five times as long.

    Exponent and fraction move to their places, and a product mends the exponent's bias. What is
    not finite becomes 65,536 or more.
    """
    wide = np.empty(values.shape, dtype=np.float32)
    source, target = values.reshape(-1).view(np.int16), wide.reshape(-1)
    for start in range(0, len(source), _WIDENED_AT_ONCE):
        run = slice(start, start + _WIDENED_AT_ONCE)
        bits = target[run].view(np.int32)
        np.left_shift(source[run], 13, out=bits, dtype=np.int32)
        bits &= _SIGN_AND_VALUE
        target[run] *= _BIAS
    return wide


class MappedShards:
    """The rows of all embedding files as one table of float16.

    All files are mapped at once, so rows stay readable when a writer removes them. A file is
    hashed before the first row is taken from it: damage is named, never served.

    A row is taken by where it lies in memory, whatever its file: a search takes a few rows from
    each of many files, and going from file to file would cost more than all else that is done
    with them.

    Args:
        folder: The index.
        files: Embedding files in order.
        dim: Of the embeddings.

    Attributes:
        rows: Of all files together.

    Raises:
        ValueError: If a file does not hold float16 of the shape the manifest says.
    """

    def __init__(self, folder: Path, files: Sequence[StoredFile], dim: int) -> None:
        self._shards = [_MappedShard(folder, file, dim) for file in files]
        self._unchecked = set(range(len(files)))
        self._dim, self._row_bytes = dim, 2 * dim
        counts = np.array([file.rows for file in files], dtype=np.int64)
        self._ends = np.cumsum(counts)
        self.rows = int(counts.sum())
        starts = np.array([shard.address for shard in self._shards], dtype=np.int64)
        filled = np.flatnonzero(counts)
        lowest = starts[filled].min(initial=np.iinfo(np.int64).max)
        # Row n of the table begins `_offsets[its shard] + n * _row_bytes` bytes behind the lowest.
        self._offsets = starts - lowest - (self._ends - counts) * self._row_bytes
        last = starts[filled] + (counts[filled] - 1) * self._row_bytes
        self._memory = self._from(lowest, int((last - lowest).max(initial=-1)) + 1)

    def __getitem__(self, rows: Int64[ndarray, " rows"]) -> Float16[ndarray, "rows dim"]:
        """Copy rows as they are stored; row numbers outside the table must not be asked for.

        Raises:
            ValueError: If the file of a row is damaged.
        """
        shards = self._ends.searchsorted(rows, side="right")
        if self._unchecked:
            self._check(shards)
        found = self._memory[self._offsets.take(shards) + rows * self._row_bytes]
        return np.asarray(found.view(np.float16)).reshape(len(rows), self._dim)

    def path_of(self, row: int) -> Path:
        """File that a row is in."""
        return self._shards[int(self._ends.searchsorted(row, side="right"))].path

    def _check(self, shards: Int64[ndarray, " rows"]) -> None:
        for shard in self._unchecked.intersection(shards.tolist()):
            self._shards[shard].check()
            self._unchecked.discard(shard)

    def _from(self, address: int, places: int) -> ndarray:
        """Whatever begins at each byte behind an address, as one item of the size of a row.

        Most of these places are in no file: the array is never looked at but where a row begins.
        """
        first = next((shard for shard in self._shards if shard.address == address), None)
        if first is None or not places:
            return np.empty(0, dtype=f"V{self._row_bytes}")
        item = first.values[: self._row_bytes].view(f"V{self._row_bytes}")
        return as_strided(item, shape=(places,), strides=(1,), writeable=False)


class _MappedShard:
    """One embedding file, mapped whole; its content is checked before anybody reads it.

    Attributes:
        path: Of the file.
        values: Its bytes behind the header, to be read once they are checked.
        address: Of the first of these.
    """

    def __init__(self, folder: Path, file: StoredFile, dim: int) -> None:
        self.path = folder / file.name
        self._sha256 = file.sha256
        self._bytes = map_file(folder, file)
        self.values = values_of(self.path, self._bytes, (file.rows, dim), np.float16)
        self.address = self.values.ctypes.data

    def check(self) -> None:
        """Read the whole file.

        Raises:
            ValueError: If the content is not what was written.
        """
        if hashlib.sha256(self._bytes.data).hexdigest() != self._sha256:
            raise damaged(self.path, "its content is not what was written")


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
