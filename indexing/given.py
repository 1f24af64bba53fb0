"""Vectors that somebody has already, and the names of the images that they stand for.

They come as NumPy's .npy, as Parquet, or inside a FAISS file that keeps them whole. Nothing of it
is trusted: no code is run, no pickle read, and sizes are those of the file.
"""

from __future__ import annotations

import glob
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Int64
from numpy import ndarray

from matvit import open_regular

_PATHS = ("path", "image_path", "file_path", "file_name", "filename", "url", "name")
_IDS = ("id", "ids", "image_id", "row")
_FLAT, _MAPPED = (b"IxFI", b"IxF2", b"IxFl"), (b"IxMp", b"IxM2")
_HEADER, _MOST_DIM = "<iqqq?i", 1 << 16
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class GivenVectors:
    """Vectors as they are stored, one per image.

    Attributes:
        parts: Their rows, one array after the other.
        names: Of their images; None if they are in the order of the images.
    """

    parts: Sequence[Float[ndarray, "rows dim"]]
    names: pa.LargeStringArray | None = None

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def dim(self) -> int:
        """Of the vectors."""
        return int(self.parts[0].shape[1])

    def take(self, rows: Int64[ndarray, " rows"]) -> Float32[ndarray, "rows dim"]:
        """Return some vectors, scaled to length one.

        Raises:
            ValueError: If one has no direction.
        """
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        for part, start in zip(self.parts, starts[:-1], strict=True):
            here = (rows >= start) & (rows < start + len(part))
            vectors[here] = part[rows[here] - start]
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        for row in np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0))):
            raise ValueError(
                f"vector {rows[row]} has length {lengths[row, 0]}, so it points nowhere; leave its "
                "image out"
            )
        return np.asarray(vectors / lengths, dtype=np.float32)


def read_given(
    path: str | Path,
    table: Path | None = None,
    *,
    path_column: str | None = None,
    vector_column: str | None = None,
) -> GivenVectors:
    """Read vectors, and which image each stands for.

    Args:
        path: A .npy file, a Parquet file, a FAISS file, or a folder or pattern of the first two.
        table: Parquet or CSV file with a row per vector, if `path` holds no names: in the order of
            the vectors, or with their ids.
        path_column: Column of the names of images; None for `path` or the like.
        vector_column: Column of the vectors in Parquet; None if there is one of lists only.

    Raises:
        FileNotFoundError: If nothing is at `path` or `table`.
        ValueError: If there are no vectors in it, or they and the names do not fit together.
    """
    files = _files(Path(path))
    suffixes = {file.suffix.lower() for file in files}
    ids = None
    if suffixes == {".npy"}:
        given = GivenVectors([_read_npy(file) for file in files])
    elif suffixes == {".parquet"}:
        given = _read_parquet(files, path_column, vector_column)
    elif len(files) == 1:
        vectors, ids = _read_faiss(files[0])
        given = GivenVectors([vectors])
    else:
        raise ValueError(f"{path} holds {', '.join(sorted(suffixes))}; name files of one kind")
    if len({part.shape[1] for part in given.parts}) > 1 or not len(given):
        raise ValueError(f"{path} holds no vectors, or some of different dimensions")
    if table is not None:
        names = _names_of(table, path_column, ids, len(given))
        return GivenVectors(given.parts, names)
    if ids is not None:
        raise ValueError(
            f"{path} knows its vectors by ids; name a table of ids and paths with --table"
        )
    return given


def _files(path: Path) -> list[Path]:
    """The files that a path or a pattern stands for, in order."""
    files = [path]
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix in (".npy", ".parquet"))
    elif not path.exists():
        files = [Path(each) for each in sorted(glob.glob(str(path)))]  # noqa: PTH207 -- absolute
    if not files:
        raise FileNotFoundError(f"no vectors at {path}: no such file, or no .npy or .parquet in it")
    return files


def _read_npy(path: Path) -> Float[ndarray, "rows dim"]:
    """Map a .npy file."""
    with open_regular(path):  # NumPy would wait for a FIFO
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, EOFError) as error:
            raise ValueError(f"cannot read {path} as .npy: {error}") from error
    if array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        raise ValueError(
            f"{path} holds {array.dtype} {array.shape}, wanted float16, float32 or float64 in "
            "(images, dimensions)"
        )
    return array


# --- Parquet ----------------------------------------------------------------------------------


def _read_parquet(
    files: Sequence[Path], path_column: str | None, vector_column: str | None
) -> GivenVectors:
    """Copy the vectors of Parquet files to files without a name, and read the names of images."""
    parts, names = [], []
    for file in files:
        with _readable(file), open_regular(file) as stream, pq.ParquetFile(stream) as parquet:
            schema = parquet.schema_arrow
            column = vector_column or _column_of_lists(schema, file)
            named = path_column or next((each for each in _PATHS if each in schema.names), None)
            _check_columns(schema, [column, *([named] if named else [])], file)
            parts.append(_copied(parquet, column, file))
            if named is not None:
                table = parquet.read(columns=[named])
                names.append(_texts(table.column(named), file))
    if names and len(names) < len(files):
        raise ValueError(f"only {len(names)} of {len(files)} files have names of images")
    return GivenVectors(parts, pa.concat_arrays(names) if names else None)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow says of a file into an error of ours."""
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        yield
    except pa.ArrowException as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def _is_list(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(
        (lists or pa.types.is_fixed_size_list(kind)) and pa.types.is_floating(kind.value_type)
    )


def _column_of_lists(schema: pa.Schema, file: Path) -> str:
    found = [field.name for field in schema if _is_list(field.type)]
    if len(found) != 1:
        raise ValueError(
            f"{file} has {len(found)} columns of lists of floats ({', '.join(found) or 'none'}); "
            "name the one of the vectors with --vector-column"
        )
    return str(found[0])


def _check_columns(schema: pa.Schema, wanted: Sequence[str], file: Path) -> None:
    for name in wanted:
        if name not in schema.names:
            raise ValueError(f"{file} has no column {name!r}; it has {', '.join(schema.names)}")


def _copied(parquet: pq.ParquetFile, column: str, file: Path) -> Float32[ndarray, "rows dim"]:
    """Copy a column of vectors into a file without a name, so that any row can be had."""
    if not _is_list(parquet.schema_arrow.field(column).type):
        raise ValueError(f"column {column!r} of {file} does not hold lists of floats")
    rows, place, array = parquet.metadata.num_rows, 0, None
    for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=[column]):
        values = batch.column(0)
        flat = values.flatten()
        dim = len(flat) // len(values) if len(values) else 0
        lengths = pc.list_value_length(values)
        if values.null_count or flat.null_count or pc.any(pc.not_equal(lengths, dim)).as_py():
            raise ValueError(
                f"column {column!r} of {file} has vectors of different lengths, or none"
            )
        if array is None:
            if not 1 <= dim <= _MOST_DIM:
                raise ValueError(f"the vectors of {file} have dimension {dim}")
            with tempfile.TemporaryFile() as stream:
                array = np.memmap(stream, np.float32, "w+", shape=(rows, dim))
        if dim != array.shape[1]:
            raise ValueError(
                f"column {column!r} of {file} has vectors of {dim} and {array.shape[1]}"
            )
        array[place : place + len(values)] = np.from_dlpack(flat.cast(pa.float32())).reshape(
            -1, dim
        )
        place += len(values)
    if array is None:
        raise ValueError(f"{file} holds no vectors")
    return array


def _texts(column: pa.ChunkedArray, file: Path) -> pa.LargeStringArray:
    if column.null_count:
        raise ValueError(f"{file} has vectors without the name of an image")
    try:
        return column.cast(pa.large_string()).combine_chunks()
    except pa.ArrowException as error:
        raise ValueError(f"the names in {file} are {column.type}, not texts") from error


# --- tables of names --------------------------------------------------------------------------


def _names_of(
    path: Path, path_column: str | None, ids: Int64[ndarray, " rows"] | None, count: int
) -> pa.LargeStringArray:
    """Read the name of each vector from a table, by its id, or else by its place."""
    with _readable(path), open_regular(path) as stream:
        parquet = path.suffix.lower() == ".parquet"
        table = pq.read_table(stream) if parquet else pyarrow.csv.read_csv(stream)
    column = path_column or next((each for each in _PATHS if each in table.column_names), None)
    if column is None:
        raise ValueError(f"{path} has no column of paths; name it with --path-column")
    _check_columns(table.schema, [column], path)
    names = _texts(table.column(column), path)
    by = next((each for each in _IDS if each in table.column_names), None)
    if by is None:
        if ids is not None:
            raise ValueError(f"{path} has no column id, but the vectors are known by ids")
        if len(names) != count:
            raise ValueError(f"{path} has {len(names):,} rows, but there are {count:,} vectors")
        return names
    wanted = pa.array(np.arange(count) if ids is None else ids)
    known = table.column(by).cast(pa.int64()).combine_chunks()
    found = pc.index_in(wanted, value_set=known)
    if found.null_count:
        lost = wanted.filter(pc.is_null(found))[0].as_py()
        raise ValueError(f"{path} does not name {found.null_count:,} vectors, such as id {lost}")
    return names.take(found)


# --- FAISS ------------------------------------------------------------------------------------


def _read_faiss(path: Path) -> tuple[Float32[ndarray, "rows dim"], Int64[ndarray, " rows"] | None]:
    """Map the vectors of a FAISS file that keeps them as they were; read their ids if it has any.

    FAISS itself believes whatever a file says, so it takes no part.

    Raises:
        ValueError: If it is damaged, or of a type that rounds vectors or keeps them in other ways.
    """
    with open_regular(path) as stream:
        size = path.stat().st_size
        code = stream.read(4)
        mapped = code in _MAPPED
        if mapped:
            outer = _header(stream, path)
            code = stream.read(4)
        if code not in _FLAT:
            raise ValueError(
                f"{path} is no .npy, no Parquet, and no flat FAISS index (its type is {code!r}); "
                "of another type, store what index.reconstruct_n(0, index.ntotal) gives as .npy"
            )
        dim, rows = _header(stream, path)
        count = _number(stream, path)
        start = stream.tell()
        if count != dim * rows or start + 4 * count > size:
            raise ValueError(f"{path} is cut off, or names a size larger than itself")
        vectors = np.memmap(path, np.float32, "r", offset=start, shape=(rows, dim))
        if not mapped:
            return vectors, None
        stream.seek(start + 4 * count)
        if outer != (dim, rows) or _number(stream, path) != rows:
            raise ValueError(f"{path} does not have one id per vector")
        ids = np.frombuffer(stream.read(8 * rows), np.int64)
        if len(ids) != rows:
            raise ValueError(f"{path} is cut off")
        return vectors, ids


def _header(stream: Any, path: Path) -> tuple[int, int]:  # noqa: ANN401
    data = stream.read(struct.calcsize(_HEADER))
    if len(data) < struct.calcsize(_HEADER):
        raise ValueError(f"{path} is cut off")
    dim, rows, _, _, _, metric = struct.unpack(_HEADER, data)
    if not (1 <= dim <= _MOST_DIM and rows >= 1 and metric in (0, 1)):
        raise ValueError(
            f"{path} has {rows} vectors of dimension {dim} and metric {metric}; wanted inner "
            "product or L2"
        )
    return dim, rows


def _number(stream: Any, path: Path) -> int:  # noqa: ANN401
    if len(data := stream.read(8)) < 8:
        raise ValueError(f"{path} is cut off")
    return int(struct.unpack("<Q", data)[0])
