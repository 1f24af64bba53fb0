"""Images inside Parquet files, in the layout of the Hugging Face `datasets` library."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec.structs import replace
from numpy.typing import NDArray

from indexing.corpus.labels import Labels, joined, read_labels
from indexing.corpus.selection import Selection, Sieve
from indexing.corpus.source import FileStat, Source, files_in
from matvit import FileContent, is_exhaustion, modified_ns

_CACHED_BYTES = 1 << 27  # one row group is kept even if it is larger
_TEXT = pa.large_string()
_LAYOUT = "expected the Hugging Face layout: image.bytes (binary), image.path, label"


class _RowGroup(NamedTuple):
    """A row group of a Parquet file; `first` is the row of the file where it begins."""

    file: Path
    number: int
    first: int
    rows: int


class _Listed(NamedTuple):
    """What a Parquet file says about its images without reading them."""

    groups: list[_RowGroup]
    paths: pa.ChunkedArray | None
    labels: Labels | None


class ParquetFiles(Source):
    """Images inside Parquet files, addressed by file, row group and row.

    They are called by their `image.path` if that tells all of them apart, else, and where there is
    none, by file and row.
    """

    kind = "parquet"

    def __init__(self, root: Path, selection: Selection = Selection()) -> None:
        sieve = Sieve(selection)
        files = files_in(root, ".parquet", sieve)
        listed = [_list(file, labels=selection.labels) for file in files]
        self._groups = [group for one in listed for group in one.groups]
        self._ends = np.cumsum([group.rows for group in self._groups], dtype=np.int64)
        if not len(self):
            raise ValueError(f"no rows in the Parquet files of {root}")
        self.root = root.resolve()
        self._paths = None if selection.rows else _telling_paths(listed, selection.rules)
        self.selection = replace(selection, rows=self._paths is None)
        counts = [sum(group.rows for group in one.groups) for one in listed]
        self.labels, self.class_names = joined([one.labels for one in listed], counts, root)
        self._wanted = self._chosen(sieve)
        self.left_out = sieve.left_out()
        self._lock = Lock()
        self._cached: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def names(self) -> pa.LargeStringArray:
        """Name of each image; see `name`."""
        parts = []
        for group in self._groups:
            rows = pa.array(np.arange(group.first, group.first + group.rows))
            file, nothing = (pa.scalar(text, _TEXT) for text in (f"{group.file.name}#", ""))
            parts.append(pc.binary_join_element_wise(file, rows.cast(_TEXT), nothing))
        unnamed = pa.chunked_array(parts, _TEXT).combine_chunks()
        if self._paths is None:
            return unnamed
        is_named = pc.fill_null(pc.greater(pc.binary_length(self._paths), 0), False)
        return pc.if_else(is_named, self._paths, unnamed)

    def name(self, index: int) -> str:
        """Return `image.path`, or the file and row where there is none."""
        stored = self._paths[index].as_py() if self._paths is not None else None
        if stored:
            return str(stored)
        group, row = self._locate(index)
        return f"{self._groups[group].file.name}#{self._groups[group].first + row}"

    def stat(self, index: int) -> FileStat:
        """Return the time of the Parquet file; the size of an image is not known unread."""
        group, _ = self._locate(index)
        return FileStat(None, modified_ns(self._groups[group].file.stat()))

    def fetch(self, index: int) -> FileContent:
        """Return `image.bytes`; nothing where it is null."""
        group, row = self._locate(index)
        mtime_ns = modified_ns(self._groups[group].file.stat())
        with self._lock:
            images = self._read_group(group)
        return FileContent(images[row].as_py() or b"", mtime_ns)

    @property
    def wanted(self) -> NDArray[np.int64]:
        """Rows that the patterns leave."""
        return self._wanted

    def _chosen(self, sieve: Sieve) -> NDArray[np.int64]:
        """Look which rows are wanted; a pattern may name a row or the file that it is in."""
        if not (self.selection.include or self.selection.exclude):
            return np.arange(len(self))
        files = (group.file.name for group in self._groups for _ in range(group.rows))
        names = zip(files, self.names.to_pylist(), strict=True)
        kept = np.flatnonzero([sieve.wants(f"{file}/{name}") for file, name in names])
        sieve.exclude(len(self) - len(kept))
        if not len(kept):
            raise ValueError(f"the patterns leave none of the {len(self):,} images in {self.root}")
        return kept

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        group = bisect_right(self._ends, index)
        return group, index - (int(self._ends[group - 1]) if group else 0)

    def _read_group(self, group: int) -> pa.ChunkedArray:
        """Read the images of a row group, unless it is one of the last few that were read."""
        if group not in self._cached:
            self._cached[group] = self._load_group(group)
            self._forget()
        self._cached.move_to_end(group)
        return self._cached[group]

    def _forget(self) -> None:
        """Let go of what was read longest ago, if all together is too much."""
        used = sum(images.nbytes for images in self._cached.values())
        while len(self._cached) > 1 and used > _CACHED_BYTES:
            used -= self._cached.popitem(last=False)[1].nbytes

    def _load_group(self, group: int) -> pa.ChunkedArray:
        file = self._groups[group].file
        parquet = _open_parquet(file)
        try:
            # One thread: there is one column, and somebody may be timing another.
            table = parquet.read_row_group(
                self._groups[group].number, columns=[_column(parquet)], use_threads=False
            )
        except pa.ArrowException as error:
            if is_exhaustion(error):
                raise
            raise OSError(f"cannot read {file}: {error}") from error
        column = table["image"]
        if pa.types.is_struct(column.type):
            return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
        return column


def _list(file: Path, *, labels: bool) -> _Listed:
    """Read all of a file but its images.

    Raises:
        ValueError: If it is not a Parquet file of images, or its labels name no classes.
    """
    with _open_parquet(file) as parquet:
        groups, first = [], 0
        for number in range(parquet.metadata.num_row_groups):
            rows = parquet.metadata.row_group(number).num_rows
            groups.append(_RowGroup(file, number, first, rows))
            first += rows
        found = None
        if labels and "label" in parquet.schema_arrow.names:
            column = parquet.read(columns=["label"]).column("label")
            found = read_labels(column, _class_names(parquet), file)
        return _Listed(groups, _paths(parquet), found)


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        if is_exhaustion(error):
            raise
        raise ValueError(f"cannot read {file}: {error}") from error
    schema = parquet.schema_arrow
    if "image" not in schema.names:
        raise ValueError(f"{file} has no column 'image' (found {schema.names}); {_LAYOUT}")
    image = schema.field("image").type
    if pa.types.is_struct(image):
        at = image.get_field_index("bytes")
        image = image.field(at).type if at >= 0 else image
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        raise ValueError(f"{file} has images of type {image}; {_LAYOUT}")
    return parquet


def _column(parquet: pq.ParquetFile) -> str:
    """Name the column of the files, without the paths beside them."""
    is_struct = pa.types.is_struct(parquet.schema_arrow.field("image").type)
    return "image.bytes" if is_struct else "image"


def _paths(parquet: pq.ParquetFile) -> pa.ChunkedArray | None:
    """Read `image.path`, without the images beside it."""
    kind = parquet.schema_arrow.field("image").type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    column = parquet.read(columns=["image.path"]).column("image")
    return pa.chunked_array([chunk.field("path").cast(_TEXT) for chunk in column.chunks], _TEXT)


def _class_names(parquet: pq.ParquetFile) -> list[str] | None:
    metadata = parquet.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _telling_paths(listed: Sequence[_Listed], rules: int) -> pa.Array | None:
    """Put the paths of all files together; None if some have none or two are the same."""
    parts = [one.paths for one in listed if one.paths is not None]
    if len(parts) < len(listed):
        return None
    paths = pa.chunked_array([chunk for part in parts for chunk in part.chunks], _TEXT)
    named = paths.filter(pc.greater(pc.binary_length(paths), 0))
    if rules > 1 and pc.count_distinct(named).as_py() < len(named):
        return None
    return paths.combine_chunks()
