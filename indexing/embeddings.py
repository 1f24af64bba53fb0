"""Stored embeddings of all shards, read from disk on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int64
from numpy import ndarray

from indexing.manifest import StoredFile
from indexing.storage import damaged

_NORM_TOLERANCE = 0.01  # float16 leaves about 0.0005


class Embeddings:
    """The rows of all shards as one read-only table of unit vectors.

    `embeddings[rows]` takes a row number, a slice or an array of row numbers and returns float32
    of shape (dim,) or (rows, dim). The stored float16 values are off unit length by up to 0.05 %,
    enough to rank a near-duplicate above the image itself, so rows are normalised when read.

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
        self.shape = (sum(file.rows for file in files), dim)
        self._paths = [folder / file.name for file in files]
        self._parts = [
            _map(path, file.rows, dim) for path, file in zip(self._paths, files, strict=True)
        ]
        self._ends = np.cumsum([file.rows for file in files])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(
        self, rows: int | slice | Int64[ndarray, " rows"]
    ) -> Float32[ndarray, "... dim"]:
        """Read rows.

        Raises:
            IndexError: If a row number is outside the table.
            ValueError: If a row is not a unit vector: its file is damaged.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        chosen = np.asarray(rows)
        flat = chosen.reshape(-1)
        if ((flat < 0) | (flat >= len(self))).any():
            raise IndexError(f"row numbers must be within 0..{len(self) - 1}, got {rows!r:.80}")
        vectors = np.empty((len(flat), self.shape[1]), dtype=np.float32)
        shards = np.searchsorted(self._ends, flat, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            first = self._ends[shard] - len(self._parts[shard])
            vectors[here] = self._parts[shard][flat[here] - first]
        norms = self._checked_norms(vectors, flat, shards)
        vectors /= norms[:, np.newaxis]
        return vectors.reshape(*chosen.shape, self.shape[1])

    def _checked_norms(
        self,
        vectors: Float32[ndarray, "rows dim"],
        rows: Int64[ndarray, " rows"],
        shards: Int64[ndarray, " rows"],
    ) -> Float32[ndarray, " rows"]:
        """Lengths of rows as stored; a row that is not of unit length is damage."""
        norms: Float32[ndarray, " rows"] = np.linalg.norm(vectors, axis=1)
        for row in np.flatnonzero(~(np.abs(norms - 1) < _NORM_TOLERANCE)):  # NaN is caught too
            raise damaged(self._paths[shards[row]], f"row {rows[row]} is not a unit vector")
        return norms


def _map(path: Path, rows: int, dim: int) -> Float16[ndarray, "rows dim"]:
    """Map one file into memory, after checking what is in it."""
    try:
        # An empty file cannot be mapped: every image of that shard failed.
        stored = np.load(path, mmap_mode="r" if rows else None, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if stored.shape != (rows, dim) or stored.dtype != np.float16:
        raise damaged(path, f"it holds {stored.dtype} {stored.shape}, not float16 {(rows, dim)}")
    return np.asarray(stored)
