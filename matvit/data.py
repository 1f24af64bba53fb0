"""Ordered, maybe labelled images in a folder or in Parquet files: names first, bytes on demand."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".avif", ".jp2", ".ico"}
)
NO_LABEL = -1
_CACHED_ROW_GROUPS = 4


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
        if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
            return ImageSet.from_parquet(path)
        return ImageSet.from_folder(path)

    @staticmethod
    def from_folder(path: str | Path) -> ImageSet:
        """Open the image files under a folder, sorted by name; class = first folder level."""
        return _FolderImages(_existing(path))

    @staticmethod
    def from_parquet(path: str | Path) -> ImageSet:
        """Open Parquet files in the Hugging Face layout (`image.bytes`, optionally `label`)."""
        return _ParquetImages(_existing(path))

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

    def is_there(self) -> bool:
        """Whether the folder or the files still exist; without them every image would fail."""
        return bool(_matches(self.root))

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

    def _path(self, index: int) -> Path:
        return self.root / self._raw_names.get(index, self.name(index))


class _RowGroup(NamedTuple):
    """A row group of a Parquet file; `first` is the row of the file where it begins."""

    file: Path
    number: int
    first: int
    rows: int


class _ParquetImages(ImageSet):
    """Images inside Parquet files, addressed by file, row group and row."""

    kind = "parquet"

    def __init__(self, root: Path) -> None:
        self.root = root
        files = sorted(root.glob("*.parquet")) if root.is_dir() else _matches(root)
        if not files:
            raise ValueError(f"no .parquet files in {root}")
        self._groups = [group for file in files for group in _row_groups(file)]
        self._ends = np.cumsum([group.rows for group in self._groups], dtype=np.int64)
        if not len(self):
            raise ValueError(f"no rows in the Parquet files of {root}")
        self._paths = _column(files, "image", "path")
        self.labels, self.class_names = _labels_of_parquet(files)
        self._lock = Lock()
        self._read_group = lru_cache(maxsize=_CACHED_ROW_GROUPS)(self._load_group)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, index: int) -> str:
        stored = self._paths[index].as_py() if self._paths is not None else None
        if stored:
            return str(stored)
        group, row = self._locate(index)
        return f"{self._groups[group].file.name}#{self._groups[group].first + row}"

    def read(self, index: int) -> bytes:
        group, row = self._locate(index)
        with self._lock:
            images = self._read_group(group)
        return images[row].as_py() or b""

    def mtime_ns(self, index: int) -> int:
        group, _ = self._locate(index)
        return self._groups[group].file.stat().st_mtime_ns

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        group = bisect_right(self._ends, index)
        return group, index - (int(self._ends[group - 1]) if group else 0)

    def _load_group(self, group: int) -> pa.ChunkedArray:
        parquet = _open_parquet(self._groups[group].file)
        column = parquet.read_row_group(self._groups[group].number, columns=["image"])["image"]
        if pa.types.is_struct(column.type):
            return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
        return column


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not _matches(path):
        raise FileNotFoundError(f"no such folder or file: {path}")
    return path


def _matches(path: Path) -> list[Path]:
    """Return the path itself if it exists, else the Parquet files that its pattern names."""
    if path.exists():
        return [path]
    return sorted(path.parent.glob(path.name)) if path.suffix == ".parquet" else []


def _walk(root: Path) -> list[str]:
    """Names of all image files below `root`, sorted; hidden files and folders are skipped."""
    names: list[str] = []

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
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


def _row_groups(file: Path) -> list[_RowGroup]:
    metadata, groups, first = _open_parquet(file).metadata, [], 0
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        groups.append(_RowGroup(file, number, first, rows))
        first += rows
    return groups


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    if "image" not in parquet.schema_arrow.names:
        raise ValueError(
            f"{file} has no column 'image' (found {parquet.schema_arrow.names}); "
            "expected the Hugging Face layout: image.bytes, image.path, label"
        )
    return parquet


def _column(files: Sequence[Path], name: str, child: str) -> pa.ChunkedArray | None:
    """Read one child of a struct column over all files, without its siblings."""
    parts: list[pa.Array] = []
    for file in files:
        parquet = _open_parquet(file)
        kind = parquet.schema_arrow.field(name).type
        if not pa.types.is_struct(kind) or kind.get_field_index(child) < 0:
            return None
        column = parquet.read(columns=[f"{name}.{child}"]).column(name)
        parts += [chunk.field(child).cast(pa.large_string()) for chunk in column.chunks]
    return pa.chunked_array(parts, type=pa.large_string()).combine_chunks()


def _labels_of_parquet(
    files: Sequence[Path],
) -> tuple[NDArray[np.int64] | None, list[str] | None]:
    """Read `label`: integers named by the schema metadata, or strings."""
    if any("label" not in _open_parquet(file).schema_arrow.names for file in files):
        return None, None
    table = pa.concat_tables([pq.read_table(file, columns=["label"]) for file in files])
    column = table.column("label").combine_chunks()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values = column.to_pylist()
        names = sorted({value for value in values if value is not None})
        number = {name: index for index, name in enumerate(names)}
        return np.array([number.get(value, NO_LABEL) for value in values], np.int64), names
    labels = np.asarray(column.cast(pa.int64()).fill_null(NO_LABEL), dtype=np.int64)
    names = _class_names(files[0]) or [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
    if labels.min(initial=0) < NO_LABEL or labels.max(initial=-1) >= len(names):
        raise ValueError(f"{files[0].parent} has labels outside its {len(names)} class names")
    return labels, names


def _class_names(file: Path) -> list[str] | None:
    """Class names from the schema metadata that the `datasets` library writes."""
    metadata = _open_parquet(file).schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return None
