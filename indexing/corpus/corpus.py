"""Ordered images to index or to ask with: decoded in parallel, in order, none dropped silently."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexing.corpus.decoding import DecodeError, DecodePool, Decoders
from indexing.corpus.source import ImageSet, Kind
from indexing.records import NO_LABEL, RECORDS, UNKNOWN, Failure, ImageRecord
from matvit import Preprocess

_PREFETCHED_BATCHES = 2
_IMAGES_PER_TASK = 16


@dataclass(frozen=True)
class DecodedBatch:
    """Consecutive images of a corpus, ready to embed.

    Attributes:
        pixels: uint8, shape (len(batch), img_size, img_size, 3).
        rows: int64, place of each row of `pixels` in the corpus that was decoded, ascending.
        columns: What is known about each row, as `RECORDS` says.
        failures: Images of the same run that have no row.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    columns: pa.RecordBatch
    failures: list[Failure]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def images(self) -> int:
        """How many images the batch stands for: rows and failures."""
        return len(self.pixels) + len(self.failures)

    @cached_property
    def records(self) -> list[ImageRecord]:
        """The columns as one object per image, for those who look at a few."""
        return [ImageRecord(**row) for row in self.columns.to_pylist()]


class Corpus:
    """Images in a fixed order, from a folder, from Parquet files or from tar archives.

    Open one with `open`, `from_folder`, `from_parquet` or `from_tar`.

    Attributes:
        root: The folder or file that was opened, as an absolute path.
        kind: `"folder"`, `"parquet"` or `"tar"`.
    """

    root: Path

    def __init__(
        self,
        images: ImageSet,
        positions: NDArray[np.int64] | None = None,
        *,
        labelled: bool = True,
    ) -> None:
        self._images = images
        self._labelled = labelled
        self._positions = np.arange(len(images)) if positions is None else positions
        self.kind: Kind = images.kind
        self.root = images.root.resolve()

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open a folder of images, of Parquet files or of tar archives, one file, or a pattern.

        Raises:
            FileNotFoundError: If nothing is at `path`.
            ValueError: If there is no image, Parquet file or tar archive.
        """
        return cls(ImageSet.open(path))

    @classmethod
    def from_folder(cls, path: str | Path) -> Corpus:
        """Open the images below a folder, sorted by name; the first folder level is the class."""
        return cls(ImageSet.from_folder(path))

    @classmethod
    def from_parquet(cls, path: str | Path) -> Corpus:
        """Open Parquet files in the Hugging Face layout (`image.bytes`, optionally `label`)."""
        return cls(ImageSet.from_parquet(path))

    @classmethod
    def from_tar(cls, path: str | Path) -> Corpus:
        """Open tar archives in the WebDataset layout (`key.jpg`, optionally `key.cls`)."""
        return cls(ImageSet.from_tar(path))

    def __len__(self) -> int:
        return len(self._positions)

    def name(self, index: int) -> str:
        """What to call an image: its path below the root, with forward slashes."""
        return self._images.name(int(self._positions[index]))

    def read(self, index: int) -> bytes:
        """Return the bytes of one image file.

        Raises:
            OSError: If the file cannot be read.
        """
        return self._images.read(int(self._positions[index]))

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class index per image, shape (len,), -1 for none; None if the corpus has no classes."""
        labels = self._images.labels if self._labelled else None
        return None if labels is None else labels[self._positions]

    @property
    def class_names(self) -> list[str] | None:
        """What the class indices mean; None if the corpus has no classes."""
        return self._images.class_names if self._labelled else None

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Corpus:
        """Return the chosen images, in the order given.

        Raises:
            IndexError: If an index is outside the corpus.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"images {chosen.min()} to {chosen.max()} of {len(self)}")
        return Corpus(self._images, self._positions[chosen], labelled=self._labelled)

    def without_labels(self) -> Corpus:
        """Return the same images as if nobody had sorted them into classes."""
        return Corpus(self._images, self._positions, labelled=False)

    def stamp(self, index: int) -> tuple[int, int]:
        """Size in bytes and time of change in nanoseconds of an image file, without reading it.

        The size of an image inside a Parquet file is not known without reading: it is -1. Both
        are -1 for a file that is gone.
        """
        try:
            size, mtime_ns = self._images.stat(int(self._positions[index]))
        except OSError:
            return UNKNOWN, UNKNOWN
        return UNKNOWN if size is None else size, mtime_ns

    @property
    def names(self) -> pa.LargeStringArray:
        """Name of each image; see `name`."""
        return self._images.names.take(pa.array(self._positions))

    @property
    def list_sha256(self) -> str:
        """SHA-256 of the list of images, in order: their names, and what their classes mean."""
        digest = hashlib.sha256(json.dumps([self.kind, self.class_names]).encode())
        for name in self.names:
            digest.update(b"\0" + name.as_py().encode())
        return digest.hexdigest()

    def decode(
        self, preprocess: Preprocess, decoders: Decoders = Decoders()
    ) -> Iterator[DecodedBatch]:
        """Decode and resize all images in parallel, a few batches ahead of the caller.

        Args:
            preprocess: How images become pixels.
            decoders: Who works, and in which batches.

        Yields:
            Batches in corpus order, the same whatever the workers. Memory holds a few at a time.

        Raises:
            FileNotFoundError: If the corpus itself goes away meanwhile.
        """
        with DecodePool(preprocess, decoders) as pool:
            yield from self.decode_with(pool)

    def decode_with(self, pool: DecodePool) -> Iterator[DecodedBatch]:
        """Do as `decode` does, with workers that stay for the next run."""
        pending: deque[_Pending] = deque()
        size = pool.preprocess.img_size
        for start in range(0, len(self), pool.batch_size):
            run = self._positions[start : start + pool.batch_size]
            pixels = np.empty((len(run), size, size, 3), dtype=np.uint8)
            step = min(_IMAGES_PER_TASK, -(-len(run) // max(1, pool.workers)))
            futures = [
                pool.submit(self._decode_run, pool, run[i : i + step], pixels[i : i + step])
                for i in range(0, len(run), step)
            ]
            pending.append((pixels, start, futures))
            if len(pending) > (_PREFETCHED_BATCHES if pool.workers else 0):
                yield _collect(*pending.popleft())
        while pending:
            yield _collect(*pending.popleft())

    def _decode_run(
        self, pool: DecodePool, run: NDArray[np.int64], pixels: NDArray[np.uint8]
    ) -> list[_Outcome]:
        """Decode a few images into their rows of `pixels`."""
        return [
            self._decode_one(pool, int(position), row)
            for position, row in zip(run, pixels, strict=True)
        ]

    def _decode_one(self, pool: DecodePool, position: int, row: NDArray[np.uint8]) -> _Outcome:
        """Read and decode one image; being unreadable is an outcome, not an error."""
        path = self._images.name(position)
        mtime_ns = size = UNKNOWN
        try:
            # Before reading: a file that changes in between then looks changed, not indexed.
            mtime_ns = self._images.stat(position).mtime_ns
            data, mtime_ns = self._images.fetch(position)
            size = len(data)
            pixels, width, height = pool.decode(data)
        except (OSError, ValueError) as error:
            if not self._images.is_there():
                raise FileNotFoundError(f"{self.root} went away while it was read") from error
            kind = error.kind if isinstance(error, DecodeError) else type(error).__name__
            return Failure(path, kind, " ".join(str(error).split()), position, size, mtime_ns)
        row[:] = pixels
        digest = hashlib.sha256(data).hexdigest()
        labels = self._images.labels if self._labelled else None
        label = NO_LABEL if labels is None else int(labels[position])
        return path, position, size, mtime_ns, digest, width, height, label


_Known = tuple[str, int, int, int, str, int, int, int]  # the fields of RECORDS
_Outcome = _Known | Failure
_Pending = tuple[NDArray[np.uint8], int, list[Future[list[_Outcome]]]]


def _collect(
    pixels: NDArray[np.uint8], start: int, futures: list[Future[list[_Outcome]]]
) -> DecodedBatch:
    """Wait for one batch and split it into rows and failures."""
    outcomes = [outcome for future in futures for outcome in future.result()]
    known = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    read = np.flatnonzero([not isinstance(outcome, Failure) for outcome in outcomes])
    pixels = pixels[read] if failures else pixels
    values = list(zip(*known, strict=True)) or [()] * len(RECORDS)
    arrays = [pa.array(column, field.type) for column, field in zip(values, RECORDS, strict=True)]
    columns = pa.RecordBatch.from_arrays(arrays, schema=RECORDS)
    return DecodedBatch(pixels, start + read, columns, failures)
