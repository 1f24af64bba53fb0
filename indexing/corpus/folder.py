"""Image files below a folder, listed for millions of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from indexing.corpus.source import CONTAINERS, IMAGE_SUFFIXES, FileStat, NamedImages, is_image_name
from indexing.records import NO_LABEL
from matvit import FileContent, read_file

_NAMES_AT_A_TIME = 1 << 16


class FolderImages(NamedImages):
    """Image files below a folder, sorted by path below it; the first folder level is the class."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ValueError(
                f"{root} is a file; expected a folder of images, a .parquet file or a .tar file"
            )
        self.root = root
        listing = _list(root)
        if not len(listing.names):
            raise ValueError(
                f"no images in {root}; looked for {', '.join(sorted(IMAGE_SUFFIXES))} "
                f"and {', '.join(CONTAINERS)}"
            )
        self._names = listing.names
        self._root = os.fsencode(root)
        self.labels, self.class_names = listing.labels, listing.class_names

    def __len__(self) -> int:
        return len(self._names)

    def stat(self, index: int) -> FileStat:
        """Ask the system."""
        found = os.stat(self._path(index))  # noqa: PTH116 -- bytes
        return FileStat(found.st_size, found.st_mtime_ns)

    def fetch(self, index: int) -> FileContent:
        """Read the file."""
        return read_file(self._path(index))

    def _path(self, index: int) -> bytes:
        return os.path.join(self._root, self._names[index].as_py())  # noqa: PTH118 -- bytes


class _Listing(NamedTuple):
    """Names of all images as bytes, sorted, and the class of each if there are classes."""

    names: pa.LargeBinaryArray
    labels: NDArray[np.int64] | None
    class_names: list[str] | None


def _list(root: Path) -> _Listing:
    """List the images below a folder; what is in memory at once are bytes, not Python strings."""
    chunks, labels = [], []
    number: dict[str, int] = {}
    for first, some in _walk(root):
        label = NO_LABEL if first is None else number.setdefault(first, len(number))
        chunks.append(pa.array(some, pa.large_binary()))
        labels.append(np.full(len(some), label, dtype=np.int64))
    names = pa.chunked_array(chunks, pa.large_binary()).combine_chunks()
    order = pc.sort_indices(names).to_numpy()
    names = names.take(pa.array(order))
    if not number:
        return _Listing(names, None, None)
    classes = sorted(number)
    place = np.empty(len(number) + 1, dtype=np.int64)
    place[[number[name] for name in classes]] = np.arange(len(classes))
    place[NO_LABEL] = NO_LABEL
    return _Listing(names, place[np.concatenate(labels)[order]], classes)


def _walk(root: Path) -> Iterator[tuple[str | None, list[bytes]]]:
    """Walk the folders below `root`; links are followed, but not in circles.

    Hidden files and folders are left out. A folder that cannot be listed is an error: its images
    would be missing without a word.

    Yields:
        First folder level and names below the root, some of one folder at a time.
    """
    pending: list[tuple[str, str | None]] = [("", None)]
    visited = {_identity(root)}
    while pending:
        below, first = pending.pop()
        names: list[bytes] = []
        folders: list[str] = []
        with os.scandir(root / below) as entries:
            for entry in entries:
                if _is_folder(entry):
                    folders.append(entry.name)
                elif is_image_name(entry.name):
                    names.append(os.fsencode(below + entry.name))
                if len(names) == _NAMES_AT_A_TIME:
                    yield first, names
                    names = []
        if names:
            yield first, names
        pending += [
            (f"{below}{name}/", first or _readable(name))
            for name in sorted(folders)  # of two links to one folder the same one wins every time
            if not name.startswith(".") and _is_new(root / below / name, visited)
        ]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it will say so
        return False


def _is_new(folder: Path, visited: set[tuple[int, int]]) -> bool:
    before = len(visited)
    visited.add(_identity(folder))
    return len(visited) > before


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _readable(name: str) -> str:
    return os.fsencode(name).decode(errors="replace")
