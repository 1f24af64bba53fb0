"""Ordered, maybe labelled images in a folder, in Parquet files or in tar archives.

Names first, bytes on demand. Names stay in Arrow and numbers in NumPy: a Python object for each
of ten million images would need gigabytes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from matvit import FileContent

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".avif", ".jp2", ".ico"}
)
CONTAINERS = (".parquet", ".tar")

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")

Kind = Literal["folder", "parquet", "tar"]


class FileStat(NamedTuple):
    """What is known of an image file without reading it.

    Attributes:
        bytes: Its size; None where only reading would tell (a row of a Parquet file).
        mtime_ns: When it, or the file that holds it, was last modified, in nanoseconds.
    """

    bytes: int | None
    mtime_ns: int


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
    kind: Kind
    labels: NDArray[np.int64] | None
    class_names: list[str] | None

    @staticmethod
    def open(path: str | Path) -> ImageSet:
        """Open a folder of images, of Parquet files or of tar archives, or one such file.

        Some of a folder's files are named by a pattern, as in `data/train-*.parquet`.

        Raises:
            FileNotFoundError: If nothing is at `path`.
            ValueError: If there is no image, Parquet file or tar archive.
        """
        path = _existing(path)
        if path.is_dir():
            return _open_as(_kind_of_folder(path), path)
        if path.name.lower().endswith(_COMPRESSED):
            raise ValueError(f"{path} is compressed; unpack it to a plain .tar first")
        return _open_as({".parquet": "parquet", ".tar": "tar"}.get(path.suffix, "folder"), path)

    @staticmethod
    def from_folder(path: str | Path) -> ImageSet:
        """Open the image files under a folder, sorted by name; class = first folder level."""
        return _open_as("folder", _existing(path))

    @staticmethod
    def from_parquet(path: str | Path) -> ImageSet:
        """Open Parquet files in the Hugging Face layout (`image.bytes`, optionally `label`)."""
        return _open_as("parquet", _existing(path))

    @staticmethod
    def from_tar(path: str | Path) -> ImageSet:
        """Open tar archives in the WebDataset layout (`key.jpg`, optionally `key.cls`)."""
        return _open_as("tar", _existing(path))

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

    def read(self, index: int) -> bytes:
        """Return the bytes of one image file.

        Raises:
            OSError: If the file cannot be read.
        """
        return self.fetch(index).data

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


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image: by its ending, and not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 -- ten times as fast


class NamedImages(ImageSet):
    """Images whose names are kept as the system has them: they need not be UTF-8."""

    _names: pa.LargeBinaryArray

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


def _open_as(kind: str, path: Path) -> ImageSet:
    if kind == "parquet":
        from indexing.corpus.parquet import ParquetImages

        return ParquetImages(path)
    if kind == "tar":
        from indexing.corpus.tar import TarImages

        return TarImages(path)
    from indexing.corpus.folder import FolderImages

    return FolderImages(path)


def _kind_of_folder(path: Path) -> str:
    """Look which kind of files a folder holds; the folders in it count as folders of images.

    Raises:
        ValueError: If there is more than one kind.
    """
    found: dict[str, str] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 -- ten times as fast
            if suffix in CONTAINERS and not entry.is_dir():
                found[suffix[1:]] = f"{path}/*{suffix}"
            elif suffix in IMAGE_SUFFIXES:
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


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not matches(path):
        raise FileNotFoundError(f"no such folder or file: {path}")
    return path
