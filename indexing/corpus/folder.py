"""Image files below a folder, listed for millions of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from indexing.corpus.source import (
    CONTAINERS,
    IMAGE_SUFFIXES,
    FileStat,
    Listing,
    NamedSource,
    is_image_name,
)
from indexing.records import NO_LABEL
from matvit import FileContent, modified_ns, read_file


class Folder(NamedSource):
    """Image files below a folder, sorted by path below it; the first folder level is the class."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ValueError(
                f"{root} is a file; expected a folder of images, a .parquet file or a .tar file"
            )
        listing = _list(root)
        if not len(listing):
            raise ValueError(
                f"no images in {root}; looked for {', '.join(sorted(IMAGE_SUFFIXES))} "
                f"and {', '.join(CONTAINERS)}"
            )
        names, (labels, self.class_names) = listing.names(), listing.classes()
        order = pc.sort_indices(names).to_numpy()
        self._names = names.take(pa.array(order))
        self.labels = None if labels is None else labels[order]
        self.root = root.resolve()
        self._root = os.fsencode(self.root)

    def stat(self, index: int) -> FileStat:
        """Ask the system."""
        found = os.stat(self._path(index))  # noqa: PTH116 -- bytes
        return FileStat(found.st_size, modified_ns(found))

    def fetch(self, index: int) -> FileContent:
        """Read the file."""
        return read_file(self._path(index))

    def _path(self, index: int) -> bytes:
        return os.path.join(self._root, self._names[index].as_py())  # noqa: PTH118 -- bytes


def _list(root: Path) -> Listing:
    listing = Listing()
    for name, first in _walk(root):
        listing.add(name, NO_LABEL if first is None else listing.number(first))
    return listing


def _walk(root: Path) -> Iterator[tuple[bytes, str | None]]:
    """Walk the folders below `root`; links are followed, but not in circles.

    Hidden files and folders are left out. A folder that cannot be listed is an error: its images
    would be missing without a word.

    Yields:
        Name of each image below the root, and the first folder level of it.
    """
    pending: list[tuple[str, str | None]] = [("", None)]
    visited = {_identity(root)}
    while pending:
        below, first = pending.pop()
        folders: list[str] = []
        with os.scandir(root / below) as entries:
            for entry in entries:
                if _is_folder(entry):
                    folders.append(entry.name)
                elif is_image_name(entry.name):
                    yield os.fsencode(below + entry.name), first
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
