"""What a folder, Parquet files and tar archives have in common: names first, bytes on demand.

Names stay in Arrow and numbers in NumPy: a Python object for each of ten million images would
need gigabytes.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from indexing.corpus.selection import LeftOut, Selection, Sieve, suffix_of
from indexing.records import NO_LABEL
from matvit import FileContent, readable_suffixes

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
        selection: What was to be taken of the place.
        left_out: What else is there.
        unlisted: Names, each with a slash at its end, of folders that could not be listed. They
            stand among the images: reading one says why.
    """

    root: Path
    kind: Kind
    labels: NDArray[np.int64] | None
    class_names: list[str] | None
    selection: Selection
    left_out: LeftOut
    unlisted: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def wanted(self) -> NDArray[np.int64]:
        """Which images the patterns leave."""
        return np.arange(len(self))

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


class Names:
    """Names of images in the order in which they are found."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._chunks: list[pa.Array] = []
        self._packed = 0

    def __len__(self) -> int:
        return self._packed + len(self._names)

    def add(self, name: bytes) -> None:
        """Add one."""
        self._names.append(name)
        if len(self._names) == _NAMES_AT_A_TIME:
            self._pack()

    def array(self) -> pa.LargeBinaryArray:
        """All of them."""
        self._pack()
        return pa.chunked_array(self._chunks, pa.large_binary()).combine_chunks()

    def _pack(self) -> None:
        self._chunks.append(pa.array(self._names, pa.large_binary()))
        self._packed += len(self._names)
        self._names = []


class Classes:
    """Names of classes, numbered in the order in which they are found, until all are known."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}

    def number(self, name: str) -> int:
        """Return the number of a class."""
        return self._number.setdefault(name, len(self._number))

    def name(self, number: int) -> str:
        """Return what the class of a number is called."""
        return list(self._number)[number]

    def ordered(
        self, labels: NDArray[np.int64], *, as_numbers: bool = False
    ) -> tuple[NDArray[np.int64] | None, list[str] | None]:
        """Number the classes by their sorted names; None if there is no class.

        Args:
            labels: Number of the class of each image, -1 for none.
            as_numbers: Sort names that are all numbers by what they count.
        """
        if not self._number:
            return None, None
        names = sorted(self._number)
        if as_numbers and all(name.isdecimal() for name in names):
            names.sort(key=int)
        place = np.full(len(names) + 1, NO_LABEL, dtype=np.int64)  # row -1 stays as it is
        place[[self._number[name] for name in names]] = np.arange(len(names))
        return place[labels], names


def told_apart(names: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """Number what is called like something before it, as in `1.jpg`, `1.jpg#2`, `1.jpg#3`."""
    if pc.count_distinct(names).as_py() == len(names):
        return names
    codes = names.dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    first = np.flatnonzero(np.diff(codes[order], prepend=-1))
    before = np.arange(len(codes)) - np.repeat(first, np.diff(first, append=len(codes)))
    texts = names.to_pylist()
    for row, count in zip(order[before > 0], before[before > 0], strict=True):
        texts[row] += b"#%d" % (count + 1)
    return told_apart(pa.array(texts, pa.large_binary()))


def files_in(root: Path, suffix: str, sieve: Sieve) -> list[Path]:
    """Return the files of one kind in a folder, or those that a name or pattern stands for.

    Raises:
        ValueError: If there is none.
    """
    if not root.is_dir():
        return matches(root)
    files = []
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_folder(entry) and suffix_of(entry.name) != suffix:
                sieve.pass_over_folder(entry.name)
            elif entry.name.startswith("."):
                continue
            elif suffix_of(entry.name) == suffix:
                files.append(root / entry.name)
            else:
                sieve.pass_over(entry.name)
    if not files:
        raise ValueError(f"no {suffix} files in {root}")
    wanted = [file for file in files if not sieve.excludes(file.name)]
    if not wanted:
        raise ValueError(f"the patterns leave none of the {len(files)} {suffix} files in {root}")
    return wanted


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; not so a link to itself, or to nothing.

    What the system cannot tell at the moment is one, unless it is called like an image: trying to
    list it will say what is wrong.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        return error.errno != errno.ELOOP and suffix_of(entry.name) not in readable_suffixes()


def matches(path: Path) -> list[Path]:
    """Return the path itself if it exists, else the files that its pattern names."""
    if path.exists():
        return [path]
    return sorted(path.parent.glob(path.name)) if suffix_of(path.name) in CONTAINERS else []
