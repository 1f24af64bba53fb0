"""Ordered images to index or to ask with: decoded in parallel, in order, none dropped silently."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from matvit.data import NO_LABEL, ImageSet
from matvit.preprocess import Preprocess

UNKNOWN = -1
"""Size or time of a file that nobody can tell."""

_PREFETCHED_BATCHES = 2

CorpusKind = Literal["folder", "parquet"]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What is known about an image that could be read.

    Attributes:
        position: Place in the folder or the Parquet files, from 0.
        path: Name shown to people: path below the root, with forward slashes.
        bytes: Size of the image file.
        mtime_ns: When the file was last modified, in nanoseconds.
        sha256: Of the bytes of the image file, 64 hex digits.
        width: Pixels, after orientation.
        height: Pixels, after orientation.
        label: Class index, -1 for none.
    """

    position: int
    path: str
    bytes: int
    mtime_ns: int
    sha256: str
    width: int
    height: int
    label: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be read.

    Attributes:
        path: Name shown to people.
        error: Class name of the exception behind it, such as `UnidentifiedImageError`.
        message: The reason, in one line.
        position: Place in the folder or the Parquet files, from 0.
        bytes: Size of the image file, -1 if unknown.
        mtime_ns: When the file was last modified, in nanoseconds, -1 if unknown.
    """

    path: str
    error: str
    message: str
    position: int
    bytes: int = UNKNOWN
    mtime_ns: int = UNKNOWN


@dataclass(frozen=True)
class DecodedBatch:
    """Consecutive images of a corpus, ready to embed.

    Attributes:
        pixels: uint8, shape (len(records), image_size, image_size, 3).
        records: One per row of `pixels`, in corpus order.
        failures: Images of the same run that have no row.
    """

    pixels: NDArray[np.uint8]
    records: list[ImageRecord]
    failures: list[Failure]


class Corpus:
    """Images in a fixed order, from a folder or from Parquet files.

    Open one with `open`, `from_folder` or `from_parquet`.

    Attributes:
        root: The folder or file that was opened, as an absolute path.
        kind: `"folder"` or `"parquet"`.
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
        self.kind: CorpusKind = images.kind
        self.root = images.root.resolve()

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open a folder of images or of Parquet files, one Parquet file, or a pattern of them.

        Raises:
            FileNotFoundError: If nothing is at `path`.
            ValueError: If there is neither an image nor a Parquet file.
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

    def stamp(self, index: int) -> tuple[int, int]:
        """Size in bytes and time of change in nanoseconds of an image file, without reading it.

        The size of an image inside a Parquet file is not known without reading: it is -1. Both
        are -1 for a file that is gone.
        """
        position = int(self._positions[index])
        try:
            return self._images.size(position), self._images.mtime_ns(position)
        except OSError:
            return UNKNOWN, UNKNOWN

    @property
    def list_sha256(self) -> str:
        """SHA-256 of the list of images, in order: their names, and what their classes mean."""
        digest = hashlib.sha256(json.dumps([self.kind, self.class_names]).encode())
        for index in range(len(self)):
            digest.update(b"\0" + self.name(index).encode())
        return digest.hexdigest()

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

    def decode(
        self, preprocess: Preprocess, *, batch_size: int = 256, workers: int | None = None
    ) -> Iterator[DecodedBatch]:
        """Decode and resize all images in a pool of threads, a few batches ahead of the caller.

        Args:
            preprocess: How images become pixels.
            batch_size: Images per batch, those that fail included.
            workers: Threads; None for one per CPU.

        Returns:
            Batches in corpus order. Memory holds a few of them at a time.

        Raises:
            ValueError: If `batch_size` or `workers` is below 1.
            FileNotFoundError: While iterating, if the corpus itself goes away.
        """
        workers = workers if workers is not None else os.cpu_count() or 1
        if batch_size < 1 or workers < 1:
            raise ValueError(
                f"batch_size and workers must be at least 1, got {batch_size} and {workers}"
            )
        return self._decode_batches(preprocess, batch_size, workers)

    def _decode_batches(
        self, preprocess: Preprocess, batch_size: int, workers: int
    ) -> Iterator[DecodedBatch]:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        pending: deque[list[Future[_Outcome]]] = deque()
        try:
            for start in range(0, len(self), batch_size):
                run = self._positions[start : start + batch_size]
                pending.append([pool.submit(self._decode_one, preprocess, int(p)) for p in run])
                if len(pending) > _PREFETCHED_BATCHES:
                    yield _collect(pending.popleft(), preprocess.image_size)
            while pending:
                yield _collect(pending.popleft(), preprocess.image_size)
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode_one(self, preprocess: Preprocess, position: int) -> _Outcome:
        """Read and decode one image; being unreadable is an outcome, not an error."""
        path = self._images.name(position)
        mtime_ns = size = UNKNOWN
        try:
            # Before reading: a file that changes in between then looks changed, not indexed.
            mtime_ns = self._images.mtime_ns(position)
            data = self._images.read(position)
            size = len(data)
            pixels, width, height = preprocess.decode(data)
        except (OSError, ValueError) as error:
            if not self._images.is_there():
                raise FileNotFoundError(f"{self.root} went away while it was read") from error
            cause = error.__cause__ or error
            message = " ".join(str(error).split())
            return Failure(path, type(cause).__name__, message, position, size, mtime_ns)
        digest = hashlib.sha256(data).hexdigest()
        labels = self._images.labels if self._labelled else None
        label = NO_LABEL if labels is None else int(labels[position])
        record = ImageRecord(position, path, size, mtime_ns, digest, width, height, label)
        return record, pixels


_Outcome = tuple[ImageRecord, NDArray[np.uint8]] | Failure


def _collect(futures: list[Future[_Outcome]], image_size: int) -> DecodedBatch:
    """Wait for one batch and split it into rows and failures."""
    outcomes = [future.result() for future in futures]
    rows = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
    pixels = np.empty((len(rows), image_size, image_size, 3), dtype=np.uint8)
    for row, (_, image) in zip(pixels, rows, strict=True):
        row[:] = image
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    return DecodedBatch(pixels, [record for record, _ in rows], failures)
