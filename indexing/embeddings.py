"""Stored embeddings of all shards, read from disk on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64
from numpy import ndarray

from indexing.manifest import StoredFile
from indexing.mapped import MappedShards
from indexing.storage import damaged

_NORM_TOLERANCE = 0.01  # float16 leaves about 0.0005
_WIDENED_AT_ONCE = 32_000  # at 32,768 torch wakes other threads, which costs more than it saves


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


def _widened(values: Float16[ndarray, "rows dim"]) -> Float32[ndarray, "rows dim"]:
    """The same values as float32, by torch, which is ten times as fast as NumPy at this."""
    if values.size <= _WIDENED_AT_ONCE:
        return np.asarray(torch.from_numpy(values).float().numpy())
    wide = np.empty(values.shape, dtype=np.float32)
    source, target = values.reshape(-1), wide.reshape(-1)
    for start in range(0, len(source), _WIDENED_AT_ONCE):
        run = slice(start, start + _WIDENED_AT_ONCE)
        torch.from_numpy(target[run]).copy_(torch.from_numpy(source[run]))
    return wide
