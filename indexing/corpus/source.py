"""What a folder, Parquet files and tar archives have in common: names first, bytes on demand.

Names stay in Arrow and numbers in NumPy: a Python object for each of ten million images would
need gigabytes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from array import array
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexing.records import NO_LABEL
from matvit import FileContent

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".avif", ".jp2", ".ico"}
)
CONTAINERS = (".parquet", ".tar")

_NAMES_AT_A_TIME = 1 << 16

Kind = Literal["folder", "parquet", "tar"]


class FileStat(NamedTuple):
    """What is known of an image file without reading it.

    Attributes:
        bytes: Its size; None where only reading would tell (a row of a Parquet file).
        mtime_ns: When it, or the file that holds it, was last modified, in nanoseconds.
    """

    bytes: int | None
    mtime_ns: int


class Source(ABC):
    """All images of one place, in a fixed order, read one by one.

    Nothing is decoded here: an image that turns out to be unreadable is the business of whoever
    decodes it, and never changes the place of another one.

    Attributes:
        root: The folder, file or pattern that was opened, as an absolute path.
        kind: What was found there.
        labels: int64 class index per image, shape (len,), -1 where there is none; None if no
            image has one.
        class_names: What the class indices mean; None where `labels` is None.
    """

    root: Path
    kind: Kind
    labels: NDArray[np.int64] | None
    class_names: list[str] | None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def names(self) -> pa.LargeStringArray:
        """What to call each image; see `name`."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call an image: its path below the root, with forward slashes."""

    @abstractmethod
    def stat(self, index: int) -> FileStat:
        """Size and time of modification of an image file, without reading it.

        Raises:
            OSError: If the file is gone.
        """

    @abstractmethod
    def fetch(self, index: int) -> FileContent:
        """Return the bytes of one image file and when it was modified.

        Raises:
            OSError: If the file cannot be read.
        """

    def is_there(self) -> bool:
        """Whether the folder or the files still exist; without them every image would fail."""
        return bool(matches(self.root))


class NamedSource(Source):
    """Images whose names are kept as the system has them: they need not be UTF-8."""

    _names: pa.LargeBinaryArray

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> pa.LargeStringArray:
        """Name of each image as text; what is not UTF-8 in it is replaced."""
        try:
            return self._names.cast(pa.large_string())
        except pa.ArrowInvalid:
            texts = [name.decode(errors="replace") for name in self._names.to_pylist()]
            return pa.array(texts, pa.large_string())

    def name(self, index: int) -> str:
        """Name of one image as text."""
        return str(self._names[index].as_py().decode(errors="replace"))


class Listing:
    """Names of images and their classes, in the order in which they are found."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._chunks: list[pa.Array] = []
        self._labels = array("q")
        self._number: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def number(self, class_name: str) -> int:
        """Return the number of a class, until `classes` orders them."""
        return self._number.setdefault(class_name, len(self._number))

    def add(self, name: bytes, label: int = NO_LABEL) -> None:
        """Add an image; `label` is the number of its class."""
        self._names.append(name)
        self._labels.append(label)
        if len(self._names) == _NAMES_AT_A_TIME:
            self._pack()

    def relabel(self, first: int, label: int) -> None:
        """Change the class of the images from `first` on."""
        for row in range(first, len(self._labels)):
            self._labels[row] = label

    def names(self) -> pa.LargeBinaryArray:
        """Names of all images, as bytes."""
        self._pack()
        return pa.chunked_array(self._chunks, pa.large_binary()).combine_chunks()

    def classes(
        self, *, as_numbers: bool = False
    ) -> tuple[NDArray[np.int64] | None, list[str] | None]:
        """Class of each image, and what the classes are called, sorted.

        Args:
            as_numbers: Sort names that are all numbers by what they count.
        """
        if not self._number:
            return None, None
        names = sorted(self._number)
        if as_numbers and all(name.isdecimal() for name in names):
            names.sort(key=int)
        place = np.full(len(names) + 1, NO_LABEL, dtype=np.int64)  # row -1 stays as it is
        place[[self._number[name] for name in names]] = np.arange(len(names))
        return place[np.array(self._labels, dtype=np.int64)], names

    def _pack(self) -> None:
        self._chunks.append(pa.array(self._names, pa.large_binary()))
        self._names = []


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image: by its ending, and not hidden."""
    return not name.startswith(".") and suffix_of(name) in IMAGE_SUFFIXES


def suffix_of(name: str) -> str:
    """Ending of a file name in small letters, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 -- ten times as fast


def files_in(root: Path, suffix: str) -> list[Path]:
    """Return the files of one kind in a folder, or those that a name or pattern stands for.

    Raises:
        ValueError: If there is none.
    """
    files = sorted(root.glob(f"*{suffix}")) if root.is_dir() else matches(root)
    if not files:
        raise ValueError(f"no {suffix} files in {root}")
    return files


def matches(path: Path) -> list[Path]:
    """Return the path itself if it exists, else the files that its pattern names."""
    if path.exists():
        return [path]
    return sorted(path.parent.glob(path.name)) if path.suffix in CONTAINERS else []
