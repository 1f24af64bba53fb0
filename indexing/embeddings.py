"""Stored embeddings of all shards, read from disk on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tokenize import TokenError

import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt8
from numpy import ndarray

from indexing.manifest import StoredFile
from indexing.storage import check_size, damaged

_NORM_TOLERANCE = 0.01  # float16 leaves about 0.0005
_HEADER_BYTES = 4_096  # more than NumPy writes before the values
# What NumPy raises at a damaged header, in which it looks for Python literals.
_UNREADABLE = (ValueError, SyntaxError, TokenError, RecursionError, MemoryError)


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
        self._shards = [_MappedShard(folder, file, dim) for file in files]
        self._ends = np.cumsum([file.rows for file in files])
        self._rows: Int64[ndarray, " rows"] | None = None
        self.shape = (sum(file.rows for file in files), dim)

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
        stored, shards = self._stored(rows)
        vectors = self._gather(stored, shards).astype(np.float32)
        vectors /= self._checked_norms(vectors, stored, shards)[:, np.newaxis]
        shape = stored.shape if isinstance(rows, slice) else np.shape(rows)
        return vectors.reshape(*shape, self.shape[1])

    def raw(self, rows: slice | Int64[ndarray, " rows"]) -> Float16[ndarray, "rows dim"]:
        """Read rows as they are stored, to store them elsewhere without rounding them again.

        Raises:
            IndexError: If a row number is outside the table.
            ValueError: If the file of a row is damaged.
        """
        return self._gather(*self._stored(rows))

    def take(self, rows: Int64[ndarray, " rows"]) -> Embeddings:
        """Return a table of some of the rows, in the order given, on the same mapped files."""
        view = object.__new__(Embeddings)
        view._shards, view._ends = self._shards, self._ends
        view._rows = rows if self._rows is None else self._rows[rows]
        view.shape = (len(rows), self.shape[1])
        return view

    def _stored(
        self, rows: int | slice | Int64[ndarray, " rows"]
    ) -> tuple[Int64[ndarray, " rows"], Int64[ndarray, " rows"]]:
        """Rows of the files, and the shard of each."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        flat = np.asarray(rows, dtype=np.int64).reshape(-1)
        if ((flat < 0) | (flat >= len(self))).any():
            raise IndexError(f"row numbers must be within 0..{len(self) - 1}, got {rows!r:.80}")
        stored = flat if self._rows is None else self._rows[flat]
        return stored, np.searchsorted(self._ends, stored, side="right")

    def _gather(
        self, rows: Int64[ndarray, " rows"], shards: Int64[ndarray, " rows"]
    ) -> Float16[ndarray, "rows dim"]:
        vectors = np.empty((len(rows), self.shape[1]), dtype=np.float16)
        for shard in np.unique(shards):
            here = shards == shard
            values = self._shards[shard].values()
            vectors[here] = values[rows[here] - (self._ends[shard] - len(values))]
        return vectors

    def _checked_norms(
        self,
        vectors: Float32[ndarray, "rows dim"],
        rows: Int64[ndarray, " rows"],
        shards: Int64[ndarray, " rows"],
    ) -> Float32[ndarray, " rows"]:
        """Lengths of rows as stored; a row that is not of unit length is damage."""
        norms: Float32[ndarray, " rows"] = np.linalg.norm(vectors, axis=1)
        for row in np.flatnonzero(~(np.abs(norms - 1) < _NORM_TOLERANCE)):  # NaN is caught too
            raise damaged(self._shards[shards[row]].path, f"row {rows[row]} is not a unit vector")
        return norms


class _MappedShard:
    """One embedding file, mapped whole; its content is checked before anybody reads it."""

    def __init__(self, folder: Path, file: StoredFile, dim: int) -> None:
        check_size(folder, file)  # also: a file cut off later cannot be told from this one
        self.path = folder / file.name
        self._sha256: str | None = file.sha256
        self._bytes: UInt8[ndarray, " bytes"]
        try:
            self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise damaged(self.path, str(error)) from error
        self._values = self._parse(file.rows, dim)

    def values(self) -> Float16[ndarray, "rows dim"]:
        """All rows; the first call reads the whole file.

        Raises:
            ValueError: If the content is not what was written.
        """
        if self._sha256 is not None:
            if hashlib.sha256(self._bytes.data).hexdigest() != self._sha256:
                raise damaged(self.path, "its content is not what was written")
            self._sha256 = None
        return self._values

    def _parse(self, rows: int, dim: int) -> Float16[ndarray, "rows dim"]:
        """Find the values behind the header, after checking what the header says."""
        header = BytesIO(self._bytes[:_HEADER_BYTES].tobytes())
        try:
            version = np.lib.format.read_magic(header)
            if version != (1, 0):
                raise ValueError(f"it has .npy version {version}, not (1, 0)")
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(header)
        except _UNREADABLE as error:
            raise damaged(self.path, f"its header cannot be read: {error}") from error
        if shape != (rows, dim) or dtype != np.float16 or by_column:
            raise damaged(self.path, f"it holds {dtype} {shape}, not float16 {(rows, dim)}")
        values = self._bytes[header.tell() :]
        if values.nbytes != rows * dim * 2:
            raise damaged(self.path, f"it has {values.nbytes:,} bytes of values")
        return np.asarray(values).view(np.float16).reshape(rows, dim)
