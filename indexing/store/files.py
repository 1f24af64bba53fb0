"""Files on disk: written whole or not at all, recognised by size and hash, mapped as arrays.

A data file is complete, on the disk and hashed before any manifest names it, and is never
rewritten afterwards: a reader may have it memory-mapped. Nor is its name used again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
from jaxtyping import Shaped, UInt8
from numpy import ndarray
from numpy.typing import DTypeLike

from matvit import check_regular, is_exhaustion, sha256_of, write_atomically

REMEDY = "; restore it from a copy or build the index again"

FILE_NAME = re.compile(
    r"img_emb/img_emb_\d{6,}\.npy"
    r"|metadata/metadata_\d{6,}\.parquet"
    r"|failures/failures_\d{6,}\.parquet"
    r"|index/knn_g\d+\.faiss"
    r"|tombstones_g\d+\.npy"
)
"""What data files of an index are called, below its folder."""

# What NumPy writes; its own reader takes any Python literal, and makes room for what that says.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|=]?[A-Za-z]\d{0,9})', 'fortran_order': (True|False), "
    rb"'shape': \(([\d, ]{0,60})\), \} *\n",
    re.DOTALL,
)
_HEADER_BYTES = 4_096  # more than NumPy writes before the values
_LENGTH_AT, _BEHIND_LENGTH = 8, 10

LARGEST = 1 << 53
"""The largest number that every JSON reader keeps exact."""

Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
"""A number of something."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One data file: its name below the index folder, its rows, and how to recognise it."""

    name: Annotated[str, msgspec.Meta(pattern=rf"^({FILE_NAME.pattern})\Z")]
    rows: Count
    bytes: Count
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


def store(folder: Path, name: str, rows: int, write: Callable[[BinaryIO], object]) -> StoredFile:
    """Write a data file of an index and return what the manifest says about it.

    Raises:
        FileExistsError: If there is one of this name.
    """
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    written = write_atomically(path, write, new=True)
    return StoredFile(name=name, rows=rows, bytes=written.bytes, sha256=written.sha256)


def check_size(folder: Path, file: StoredFile) -> None:
    """Refuse a file that is missing or cut off, or is no file.

    Raises:
        ValueError: If it is.
        OSError: If nobody can tell.
    """
    path = folder / file.name
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise damaged(path, "it is missing") from error
    try:
        check_regular(found)
    except OSError as error:
        raise damaged(path, f"it is {error}") from error
    if found.st_size != file.bytes:
        raise damaged(path, f"it has {found.st_size:,} bytes, the manifest says {file.bytes:,}")


def check_hash(folder: Path, file: StoredFile) -> None:
    """Refuse a file whose content is not what was written.

    Raises:
        ValueError: If its size or its SHA-256 differs from the manifest's.
        OSError: If it cannot be read.
    """
    check_size(folder, file)
    if sha256_of(folder / file.name) != file.sha256:
        raise damaged(folder / file.name, "its content is not what was written")


def refuse_other_than_files(path: Path) -> None:
    """Refuse a link, a FIFO or a device where a writer would have a file, or nothing yet.

    Raises:
        ValueError: If there is one.
    """
    try:
        check_regular(path.lstat())
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(
            f"{path} is {error}; in an index that is written to, every file has to be one of its "
            "own: put the file itself in its place, or remove what is there"
        ) from error


def is_of_machine(error: BaseException) -> bool:
    """Whether an error says something of the machine or the disk, and nothing of a file's content.

    Nobody should throw a file away for it.
    """
    return is_exhaustion(error) or (isinstance(error, OSError) and error.errno is not None)


def damaged(path: Path, reason: str) -> ValueError:
    """Return the error for a file of an index that cannot be trusted."""
    return ValueError(f"{path} is damaged: {reason}{REMEDY}")


def map_file(folder: Path, file: StoredFile) -> UInt8[ndarray, " bytes"]:
    """Map a file of an index into memory; no descriptor stays open for it.

    Raises:
        ValueError: If it is missing, is no file, or has another size than was written.
        OSError: If it cannot be mapped.
    """
    check_size(folder, file)  # also: a file cut off later cannot be told from this one
    path = folder / file.name
    with pa.memory_map(os.fsencode(path)) as mapped:
        data = np.frombuffer(mapped.read_buffer(), dtype=np.uint8)
    if data.nbytes != file.bytes:
        raise damaged(path, f"it has {data.nbytes:,} bytes, the manifest says {file.bytes:,}")
    return data


def values_of(
    path: Path, data: UInt8[ndarray, " bytes"], shape: tuple[int, ...], dtype: DTypeLike
) -> UInt8[ndarray, " bytes"]:
    """Find the values of a mapped .npy file behind its header.

    Args:
        path: Of the file, for messages.
        data: All of it.
        shape: That it must have.
        dtype: Of its values.

    Raises:
        ValueError: If the header is not what NumPy writes, or says anything else, or the file does
            not hold as much.
    """
    wanted = np.dtype(dtype)
    header = data[:_HEADER_BYTES].tobytes()
    found = _HEADER.match(header)
    length = int.from_bytes(header[_LENGTH_AT:_BEHIND_LENGTH], "little")
    try:
        if found is None or found.end() != _BEHIND_LENGTH + length:
            raise TypeError(f"it begins with {header[:80]!r}")
        stored = np.dtype(found[1].decode())
    except (TypeError, ValueError) as error:
        raise damaged(path, f"its header cannot be read: {error}") from error
    there = tuple(int(number) for number in found[3].replace(b",", b" ").split())
    if there != shape or stored != wanted or found[2] == b"True":
        raise damaged(path, f"it holds {stored} {there}, not {wanted} {shape}")
    values = data[found.end() :]
    if values.nbytes != int(np.prod(shape, dtype=object)) * wanted.itemsize:
        raise damaged(path, f"it has {values.nbytes:,} bytes of values")
    return values


def read_array(
    folder: Path, file: StoredFile, shape: tuple[int, ...], dtype: DTypeLike
) -> Shaped[ndarray, "..."]:
    """Read a .npy file whole, of the hash that was written.

    Raises:
        ValueError: If it is damaged or holds anything else.
        OSError: If it cannot be read.
    """
    data = map_file(folder, file)
    return values_of(folder / file.name, data, shape, dtype).view(dtype).reshape(shape).copy()
