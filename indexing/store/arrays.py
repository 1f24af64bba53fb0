"""Arrays on disk: .npy files, mapped into memory, and believed only as far as they are there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped, UInt8
from numpy import ndarray
from numpy.typing import DTypeLike

from indexing.store.files import StoredFile, check_size, damaged

# What NumPy writes; its own reader takes any Python literal, and makes room for what that says.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|=]?[A-Za-z]\d{0,9})', 'fortran_order': (True|False), "
    rb"'shape': \(([\d, ]{0,60})\), \} *\n",
    re.DOTALL,
)
_HEADER_BYTES = 4_096  # more than NumPy writes before the values
_LENGTH_AT, _BEHIND_LENGTH = 8, 10


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
