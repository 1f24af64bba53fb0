"""`Corpus`: images in a fixed order, decoded in parallel and in order, none dropped silently."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexing.corpus.decode_process import DecodeError
from indexing.corpus.decoding import DecodePool, Decoders
from indexing.corpus.folder import Folder
from indexing.corpus.parquet import ParquetFiles
from indexing.corpus.selection import LeftOut, Selection, suffix_of
from indexing.corpus.source import CONTAINERS, Kind, Source, is_folder, matches
from indexing.corpus.tar import TarArchives
from indexing.records import NO_LABEL, RECORDS, UNKNOWN, Failure, ImageRecord
from matvit import Preprocess, is_exhaustion, readable_suffixes

_PREFETCHED_BATCHES = 2
_IMAGES_PER_TASK = 16
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


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


@dataclass(frozen=True, eq=False)
class Corpus:
    """Images in a fixed order, from a folder, from Parquet files or from tar archives.

    Open one with `open`, `from_folder`, `from_parquet` or `from_tar`.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> folder = TemporaryDirectory()
        >>> for animal in ("cat", "dog"):
        ...     Path(folder.name, animal).mkdir()
        ...     Image.new("RGB", (40, 30)).save(f"{folder.name}/{animal}/1.png")
        >>> corpus = Corpus.open(folder.name)
        >>> len(corpus), corpus.name(1), corpus.class_names
        (2, 'dog/1.png', ['cat', 'dog'])
        >>> [batch.pixels.shape for batch in corpus.subset([1]).decode(Preprocess(img_size=8))]
        [(1, 8, 8, 3)]
        >>> folder.cleanup()

    Attributes:
        source: All images of the place that was opened.
        positions: int64, place in `source` of each image of this corpus.
        labelled: Whether its classes count.
        is_chosen: Whether it was said what to take; an index that is updated else takes what it
            took when it was built.
    """

    source: Source
    positions: NDArray[np.int64]
    labelled: bool = True
    is_chosen: bool = False

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        labels: bool | None = None,
    ) -> Corpus:
        """Open a folder of images, of Parquet files or of tar archives, or one such file.

        Some of a folder's files are named by a pattern, as in `data/train-*.parquet`.

        Args:
            path: A folder, a file or a pattern.
            include: Patterns of what to take, such as `["*.jpg", "2020/**"]`; None for all.
            exclude: Patterns of what to leave out; see `Selection`.
            labels: False to go on without classes, whatever there may be.

        Raises:
            FileNotFoundError: If nothing is at `path`.
            ValueError: If there is no image, Parquet file or tar archive, or a pattern is none.
        """
        path = _existing(path)
        kind = _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)
        selection = Selection.of(include, exclude, labels=labels is not False)
        source = _SOURCES.get(kind, Folder)(path, selection)
        return cls._of(
            source, is_chosen=any(said is not None for said in (include, exclude, labels))
        )

    @classmethod
    def from_folder(cls, path: str | Path) -> Corpus:
        """Open the images below a folder, sorted by name; the first folder level is the class."""
        return cls._of(Folder(_existing(path)))

    @classmethod
    def from_parquet(cls, path: str | Path) -> Corpus:
        """Open Parquet files in the Hugging Face layout (`image.bytes`, optionally `label`)."""
        return cls._of(ParquetFiles(_existing(path)))

    @classmethod
    def from_tar(cls, path: str | Path) -> Corpus:
        """Open tar archives in the WebDataset layout (`key.jpg`, optionally `key.cls`)."""
        return cls._of(TarArchives(_existing(path)))

    @classmethod
    def as_listed(cls, root: str | Path, kind: Kind, selection: Selection) -> Corpus:
        """Open a place once more, to take of it what was taken before.

        Args:
            root: As the corpus had it.
            kind: What was found there.
            selection: What was to be taken.
        """
        return cls._of(_SOURCES[kind](_existing(root), selection), is_chosen=True)

    @classmethod
    def _of(cls, source: Source, *, is_chosen: bool = False) -> Corpus:
        return cls(source, source.wanted, labelled=source.selection.labels, is_chosen=is_chosen)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def root(self) -> Path:
        """The folder, file or pattern that was opened, as an absolute path."""
        return self.source.root

    @property
    def kind(self) -> Kind:
        """What was found there: `"folder"`, `"parquet"` or `"tar"`."""
        return self.source.kind

    @property
    def selection(self) -> Selection:
        """What was to be taken of the place."""
        return msgspec.structs.replace(self.source.selection, labels=self.labelled)

    @property
    def is_whole(self) -> bool:
        """Whether it has all images that are to be taken, and not a part of them."""
        return np.array_equal(self.positions, self.source.wanted)

    @property
    def left_out(self) -> LeftOut:
        """What the place holds besides the images that are taken."""
        return self.source.left_out

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Names of folders that could not be listed; see `Source`."""
        return self.source.unlisted

    @property
    def names(self) -> pa.LargeStringArray:
        """Name of each image; see `name`."""
        return self.source.names.take(pa.array(self.positions))

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class index per image, shape (len,), -1 for none; None if the corpus has no classes."""
        labels = self.source.labels if self.labelled else None
        return None if labels is None else labels[self.positions]

    @property
    def class_names(self) -> list[str] | None:
        """What the class indices mean; None if the corpus has no classes."""
        return self.source.class_names if self.labelled else None

    @property
    def list_sha256(self) -> str:
        """SHA-256 of the list of images, in order: their names, and what their classes mean."""
        digest = hashlib.sha256(json.dumps([self.kind, self.class_names]).encode())
        for name in self.names:
            digest.update(b"\0" + name.as_py().encode())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Corpus:
        """Return the chosen images, in the order given.

        Raises:
            IndexError: If an index is outside the corpus.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"images {chosen.min()} to {chosen.max()} of {len(self)}")
        return replace(self, positions=self.positions[chosen])

    def without_labels(self) -> Corpus:
        """Return the same images as if nobody had sorted them into classes."""
        return replace(self, labelled=False)

    def name(self, index: int) -> str:
        """What to call an image: its path below the root, with forward slashes."""
        return self.source.name(int(self.positions[index]))

    def stamp(self, index: int) -> tuple[int, int]:
        """Size in bytes and time of change in nanoseconds of an image file, without reading it.

        The size of an image inside a Parquet file is not known without reading: it is -1. Both
        are -1 for a file that is gone.
        """
        try:
            size, mtime_ns = self.source.stat(int(self.positions[index]))
        except OSError:
            return UNKNOWN, UNKNOWN
        return UNKNOWN if size is None else size, mtime_ns

    def read(self, index: int) -> bytes:
        """Return the bytes of one image file.

        Raises:
            OSError: If the file cannot be read.
        """
        return self.source.fetch(int(self.positions[index])).data

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
            run = self.positions[start : start + pool.batch_size]
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
        path = self.source.name(position)
        mtime_ns = size = UNKNOWN
        try:
            # Before reading: a file that changes in between then looks changed, not indexed.
            mtime_ns = self.source.stat(position).mtime_ns
            data, mtime_ns = self.source.fetch(position)
            size = len(data)
            pixels, width, height = pool.decode(data)
        except (OSError, ValueError) as error:
            if is_exhaustion(error):
                raise
            if not self.source.is_there():
                raise FileNotFoundError(f"{self.root} went away while it was read") from error
            kind = error.kind if isinstance(error, DecodeError) else type(error).__name__
            # What the system says, without the name, which is said beside it.
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return Failure(path, kind, " ".join(said.split()), position, size, mtime_ns)
        row[:] = pixels
        digest = hashlib.sha256(data).hexdigest()
        labels = self.source.labels if self.labelled else None
        label = NO_LABEL if labels is None else int(labels[position])
        return path, position, size, mtime_ns, digest, width, height, label


_SOURCES: dict[str, type[Folder] | type[ParquetFiles] | type[TarArchives]] = {
    "folder": Folder,
    "parquet": ParquetFiles,
    "tar": TarArchives,
}

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


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not matches(path):
        raise FileNotFoundError(f"no such folder or file: {path}")
    return path


def _kind_of_file(path: Path) -> str:
    if path.name.lower().endswith(_COMPRESSED):
        raise ValueError(f"{path} is compressed; unpack it to a plain .tar first")
    return suffix_of(path.name)[1:]


def _kind_of_folder(path: Path) -> str:
    """Look which kind of files a folder holds; the folders in it count as folders of images.

    Raises:
        ValueError: If there is more than one kind.
    """
    found: dict[str, str] = {}
    images = readable_suffixes()
    with os.scandir(path) as entries:
        for entry in entries:
            suffix = suffix_of(entry.name)
            if entry.name.startswith("."):
                continue
            if suffix in CONTAINERS and not is_folder(entry):
                found[suffix[1:]] = f"{path}/*{Path(entry.name).suffix}"
            elif suffix in images:
                found["image"] = str(path)
    if len(found) < 2:
        return next(iter(found), "folder")
    names = {"parquet": "Parquet files", "tar": "tar archives", "image": "image files"}
    named = next(found[kind] for kind in ("parquet", "tar") if kind in found)
    raise ValueError(
        f"{path} holds {' and '.join(names[kind] for kind in sorted(found))}; "
        f"name the {names['parquet' if 'parquet' in found else 'tar']} ({named}) "
        "or move one kind elsewhere"
    )
