"""Embedding files mapped into memory: rows of any of them taken in one step, and only if whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tokenize import TokenError

import numpy as np
from jaxtyping import Float16, Int64, UInt8
from numpy import ndarray
from numpy.lib.stride_tricks import as_strided

from indexing.manifest import StoredFile
from indexing.storage import check_size, damaged

_HEADER_BYTES = 4_096  # more than NumPy writes before the values
# What NumPy raises at a damaged header, in which it looks for Python literals.
_UNREADABLE = (ValueError, SyntaxError, TokenError, RecursionError, MemoryError)


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
        check_size(folder, file)  # also: a file cut off later cannot be told from this one
        self.path = folder / file.name
        self._sha256 = file.sha256
        self._bytes: UInt8[ndarray, " bytes"]
        try:
            self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise damaged(self.path, str(error)) from error
        self.values = self._parse(file.rows, dim)
        self.address = self.values.ctypes.data

    def check(self) -> None:
        """Read the whole file.

        Raises:
            ValueError: If the content is not what was written.
        """
        if hashlib.sha256(self._bytes.data).hexdigest() != self._sha256:
            raise damaged(self.path, "its content is not what was written")

    def _parse(self, rows: int, dim: int) -> UInt8[ndarray, " bytes"]:
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
        values = np.asarray(self._bytes[header.tell() :])
        if values.nbytes != rows * dim * 2:
            raise damaged(self.path, f"it has {values.nbytes:,} bytes of values")
        return values
