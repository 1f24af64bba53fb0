"""Image files below a folder, listed for millions of them."""

from __future__ import annotations

import errno
import os
from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.corpus.selection import Selection, Sieve
from indexing.corpus.source import CONTAINERS, Classes, FileStat, NamedSource, Names, is_folder
from indexing.records import NO_LABEL
from matvit import FileContent, is_exhaustion, modified_ns, read_file, readable_suffixes


class Folder(NamedSource):
    """Image files below a folder, sorted by path below it; the first folder level is the class.

    Links are followed, but not in circles. Below the root a folder that cannot be listed costs
    what is in it and nothing else; it stands among the images, and reading it says why.
    """

    kind = "folder"

    def __init__(self, root: Path, selection: Selection = Selection()) -> None:
        if not root.is_dir():
            raise ValueError(
                f"{root} is a file; expected a folder of images, a .parquet file or a .tar file"
            )
        walk = _Walk(root, selection)
        self.selection, self.left_out = selection, walk.sieve.left_out()
        if not len(walk.names):
            raise ValueError(
                f"no images in {root}; looked for {', '.join(sorted(readable_suffixes()))} "
                f"and {', '.join(CONTAINERS)}{_also(self.left_out.in_words())}"
            )
        names = walk.names.array()
        order = pc.sort_indices(names).to_numpy()
        self._names = names.take(pa.array(order))
        labels = np.array(walk.labels, dtype=np.int64)[order]
        self.labels, self.class_names = walk.classes.ordered(labels)
        self.root = root.resolve()
        self._root = os.fsencode(self.root)
        self._errors = walk.errors
        self.unlisted = tuple(name.decode(errors="replace") for name in walk.errors)

    def stat(self, index: int) -> FileStat:
        """Ask the system; a file that may not be read is an error already."""
        path = self._path(index)
        found = os.stat(path)  # noqa: PTH116 -- bytes
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(path))
        return FileStat(found.st_size, modified_ns(found))

    def fetch(self, index: int) -> FileContent:
        """Read the file."""
        return read_file(self._path(index))

    def _path(self, index: int) -> bytes:
        name = self._names[index].as_py()
        if (error := self._errors.get(name)) is not None:
            raise OSError(*error)
        return os.path.join(self._root, name)  # noqa: PTH118 -- bytes


class _Walk:
    """Lists the folders below a root.

    Attributes:
        sieve: Knows what was left out.
        names: Of the images, and of folders that could not be listed.
        labels: Number of the class of each.
        classes: What they are called.
        errors: Why a folder could not be listed, by its name.
    """

    def __init__(self, root: Path, selection: Selection) -> None:
        self.sieve = Sieve(selection)
        self.names, self.labels, self.classes = Names(), array("q"), Classes()
        self.errors: dict[bytes, tuple[int | None, str, str]] = {}
        self._root, self._visited = root, {_identity(root)}
        pending: list[tuple[str, str | None]] = [("", None)]
        while pending:
            below, first = pending.pop()
            # Of two links to one folder the same one wins every time.
            for name in sorted(self._list(below, first)):
                path = f"{below}{name}"
                if self.sieve.enters(path) and self._is_new(path):
                    pending.append((f"{path}/", first or _readable(name)))

    def _list(self, below: str, first: str | None) -> list[str]:
        """Add the images of one folder, and return the folders in it."""
        folders = []
        try:
            with os.scandir(self._root / below) as entries:
                for entry in entries:
                    if is_folder(entry):
                        folders.append(entry.name)
                    elif self.sieve.takes(path := f"{below}{entry.name}", entry.name):
                        self.names.add(os.fsencode(path))
                        self.labels.append(
                            NO_LABEL if first is None else self.classes.number(first)
                        )
        except OSError as error:
            if not below:
                raise
            self._give_up(below, error)
        return folders

    def _is_new(self, path: str) -> bool:
        """Whether a folder was not reached before, by whatever way."""
        before = len(self._visited)
        try:
            self._visited.add(_identity(self._root / path))
        except OSError as error:
            self._give_up(f"{path}/", error)
        return len(self._visited) > before

    def _give_up(self, folder: str, error: OSError) -> None:
        """Let a folder stand for all in it that nobody can see."""
        if is_exhaustion(error):
            raise error
        name = os.fsencode(folder)
        reason = error.strerror or str(error)
        self.errors[name] = (error.errno, reason, str(error.filename or folder))
        self.names.add(name)
        self.labels.append(NO_LABEL)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _readable(name: str) -> str:
    return os.fsencode(name).decode(errors="replace")


def _also(sentences: list[str]) -> str:
    return "".join(f"; {sentence}" for sentence in sentences)
