"""Ordered, maybe labelled images in a folder or in Parquet files: names first, bytes on demand."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".avif", ".jp2", ".ico"}
)
NO_LABEL = -1


class ImageSet(ABC):
    """Images in a fixed order, read one by one or in a run.

    Nothing is decoded here: an image that turns out to be unreadable is the business of whoever
    decodes it, and never changes the place of another one.

    Attributes:
        root: The folder, file or pattern that was opened.
        kind: What was found there.
        labels: int64 class index per image, shape (len,), -1 where there is none; None if no
            image has one.
        class_names: What the class indices mean; None where `labels` is None.
    """

    root: Path
    kind: Literal["folder", "parquet"]
    labels: NDArray[np.int64] | None
    class_names: list[str] | None

    @staticmethod
    def open(path: str | Path) -> ImageSet:
        """Open a folder of images, a folder of Parquet files, or one Parquet file.

        Some of a folder's Parquet files are named by a pattern, as in `data/train-*.parquet`.

        Raises:
            FileNotFoundError: If nothing is at `path`.
            ValueError: If there is neither an image nor a Parquet file.
        """
        path = _existing(path)
        if path.suffix == ".parquet":
            return ImageSet.from_parquet(path)
        if path.is_dir() and any(path.glob("*.parquet")):
            if any(child.suffix.lower() in IMAGE_SUFFIXES for child in path.iterdir()):
                raise ValueError(
                    f"{path} holds image files and Parquet files; "
                    f"name the Parquet files ({path}/*.parquet) or move one kind elsewhere"
                )
            return ImageSet.from_parquet(path)
        return ImageSet.from_folder(path)

    @staticmethod
    def from_folder(path: str | Path) -> ImageSet:
        """Open the image files under a folder, sorted by name; class = first folder level."""
        return _FolderImages(_existing(path))

    @staticmethod
    def from_parquet(path: str | Path) -> ImageSet:
        """Open Parquet files in the Hugging Face layout (`image.bytes`, optionally `label`)."""
        from matvit.parquet import ParquetImages

        return ParquetImages(_existing(path))

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call an image: its path below the root, with forward slashes."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the bytes of one image file.

        Raises:
            OSError: If the file cannot be read.
        """

    @abstractmethod
    def mtime_ns(self, index: int) -> int:
        """When the file that holds an image was last modified, in nanoseconds.

        Raises:
            OSError: If the file is gone.
        """

    def size(self, index: int) -> int:  # noqa: ARG002 -- images that are files know it
        """Bytes of one image file; -1 where only reading it would tell.

        Raises:
            OSError: If the file is gone.
        """
        return -1

    def is_there(self) -> bool:
        """Whether the folder or the files still exist; without them every image would fail."""
        return bool(matches(self.root))

    def read_range(self, start: int, stop: int) -> Iterator[bytes | OSError]:
        """Read a run of images in order; an unreadable file comes as its error, not raised."""
        for index in range(start, stop):
            try:
                yield self.read(index)
            except OSError as error:
                yield error


class _FolderImages(ImageSet):
    """Image files below a folder."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ValueError(f"{root} is a file; expected a folder of images or a .parquet file")
        self.root = root
        names = _walk(root)
        if not names:
            raise ValueError(
                f"no images in {root}; looked for {', '.join(sorted(IMAGE_SUFFIXES))} and .parquet"
            )
        shown = [name.encode(errors="surrogateescape").decode(errors="replace") for name in names]
        self._names = pa.array(shown)  # millions of Python strings would not fit in memory
        # Names that are not UTF-8 cannot be stored or shown; these are what the system calls them.
        self._raw_names = {i: name for i, name in enumerate(names) if name != shown[i]}
        self.labels, self.class_names = _labels_of_folders(shown)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return str(self._names[index].as_py())

    def read(self, index: int) -> bytes:
        return self._path(index).read_bytes()

    def mtime_ns(self, index: int) -> int:
        return self._path(index).stat().st_mtime_ns

    def size(self, index: int) -> int:
        return self._path(index).stat().st_size

    def _path(self, index: int) -> Path:
        return self.root / self._raw_names.get(index, self.name(index))


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not matches(path):
        raise FileNotFoundError(f"no such folder or file: {path}")
    return path


def matches(path: Path) -> list[Path]:
    """Return the path itself if it exists, else the Parquet files that its pattern names."""
    if path.exists():
        return [path]
    return sorted(path.parent.glob(path.name)) if path.suffix == ".parquet" else []


def _walk(root: Path) -> list[str]:
    """Names of all image files below `root`, sorted; hidden files and folders are left out."""
    names: list[str] = []
    visited = {os.path.realpath(root)}

    def fail(error: OSError) -> None:
        raise error

    def is_new(folder: str) -> bool:  # links are followed, but not in circles
        before = len(visited)
        visited.add(os.path.realpath(folder))
        return len(visited) > before

    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and is_new(f"{folder}/{name}")
        ]
        below = Path(folder).relative_to(root)
        names += [
            (below / name).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(names)


def _labels_of_folders(names: Sequence[str]) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    """Class of each image: the first folder of its name, if there is one."""
    firsts = [name.split("/", 1)[0] if "/" in name else None for name in names]
    classes = sorted({first for first in firsts if first is not None})
    if not classes:
        return None, None
    number = {name: index for index, name in enumerate(classes)}
    labels = [NO_LABEL if first is None else number[first] for first in firsts]
    return np.array(labels, dtype=np.int64), classes
