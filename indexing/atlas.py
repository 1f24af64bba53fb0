"""A map of an index: its images in a plane, for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Float64
from numpy import ndarray

from indexing.store.embeddings import Vectors
from indexing.stores.rows import rows_of
from matvit import progress_of, write_atomically

if TYPE_CHECKING:
    from indexing.index import ImageIndex

_TOGETHER = 8_192


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """The plane in which images differ most: their two principal components.

    Attributes:
        mean: Of the stored vectors, shape (dim,).
        axes: Unit vectors that span it, shape (2, dim), the one with more variance first. The
            largest entry of each is positive, so that the map of an index is always the same.
        shares: Of the variance, along each.
    """

    mean: Float64[ndarray, " dim"]
    axes: Float64[ndarray, "2 dim"]
    shares: tuple[float, float]

    @classmethod
    def of(cls, embeddings: Vectors) -> Plane:
        """Find it, going through the vectors twice."""
        images, dim = embeddings.shape
        mean, covariance = np.zeros(dim), np.zeros((dim, dim))
        for part in _parts(embeddings):
            mean += part.sum(axis=0, dtype=np.float64) / images
        for part in _parts(embeddings):
            centred = part - mean
            covariance += centred.T @ centred
        values, vectors = np.linalg.eigh(covariance)
        axes = vectors[:, [-1, -2]].T
        largest = axes[np.arange(2), np.abs(axes).argmax(axis=1)]
        first, second = (values[[-1, -2]] / max(values.sum(), np.finfo(float).tiny)).tolist()
        return cls(mean=mean, axes=axes * np.sign(largest)[:, None], shares=(first, second))

    def place(self, vectors: Float32[ndarray, "images dim"]) -> Float32[ndarray, "images 2"]:
        """Say where vectors lie in it."""
        return np.asarray((vectors - self.mean) @ self.axes.T, dtype=np.float32)


def write_atlas(
    index: ImageIndex,
    file: str | Path,
    *,
    picture: Callable[[int], bytes | None] | None = None,
    progress: bool = False,
) -> Plane:
    """Write a map as a Parquet file, as Embedding Atlas and others read it.

    Its columns: id, path, label, x, y, and vector, of which Embedding Atlas can make a map of its
    own; with pictures also image, a structure of bytes and path.

    Args:
        index: What to draw.
        file: Where to; replaced if it is there.
        picture: Makes the picture of an image from its id; None where its file is gone.
        progress: Show a progress bar on stderr.

    Returns:
        The plane.

    Raises:
        OSError: If it cannot be written.
    """
    plane = Plane.of(index.embeddings)

    def write(stream: BinaryIO) -> None:
        with (
            pq.ParquetWriter(stream, _schema(index, with_image=picture is not None)) as writer,
            progress_of("drawing", len(index), unit="img", shown=progress) as bar,
        ):
            for start in range(0, len(index), _TOGETHER):
                writer.write_table(_table(index, plane, start, picture, writer.schema))
                bar.update(min(_TOGETHER, len(index) - start))

    write_atomically(Path(file), write)
    return plane


def _parts(embeddings: Vectors) -> Iterator[Float32[ndarray, "images dim"]]:
    for start in range(0, len(embeddings), _TOGETHER):
        yield embeddings[start : start + _TOGETHER]


def _schema(index: ImageIndex, *, with_image: bool) -> pa.Schema:
    columns = [
        ("id", pa.int64()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("vector", pa.list_(pa.float32(), index.embeddings.shape[1])),
    ]
    image = ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return pa.schema([*columns, image] if with_image else columns)


def _table(
    index: ImageIndex,
    plane: Plane,
    start: int,
    picture: Callable[[int], bytes | None] | None,
    schema: pa.Schema,
) -> pa.Table:
    """Some rows of the file."""
    rows = slice(start, start + _TOGETHER)
    batch = rows_of(index, rows, schema)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    places = plane.place(index.embeddings[rows])
    columns |= {"x": places[:, 0], "y": places[:, 1]}
    if picture is not None:
        columns["image"] = [
            {"bytes": picture(number), "path": path}
            for number, path in zip(
                columns["id"].to_pylist(), columns["path"].to_pylist(), strict=True
            )
        ]
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
