"""Reading files that somebody else put there: whole, regular, and of a size that fits."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

MAX_BYTES = 1 << 30
"""A larger file is refused instead of read; the largest image that is decoded needs less."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class FileStat(NamedTuple):
    """What is known of an image file without reading it.

    Attributes:
        bytes: Its size; None where only reading would tell (a row of a Parquet file).
        mtime_ns: When it, or the file that holds it, was last modified, in nanoseconds.
    """

    bytes: int | None
    mtime_ns: int


class FileContent(NamedTuple):
    """The bytes of an image file, and when it was modified before they were read."""

    data: bytes
    mtime_ns: int


def read_file(path: str | bytes | os.PathLike[str]) -> FileContent:
    """Read a regular file; opening a FIFO would wait for a writer that may never come.

    Raises:
        OSError: If it cannot be read, is something else than a file, or is too large.
    """
    return read_part(path, 0, None)


def read_part(
    path: str | bytes | os.PathLike[str], start: int, size: int | None, mtime_ns: int | None = None
) -> FileContent:
    """Read `size` bytes from `start` on; None for the rest of the file.

    Args:
        path: A regular file.
        start: First byte.
        size: How many; all of them must be there.
        mtime_ns: When the file must have been modified last; None for any time.

    Raises:
        OSError: If that is not possible; the message says why.
    """
    _check_regular(os.stat(path).st_mode)  # noqa: PTH116 -- opening a device can have effects
    descriptor = os.open(path, _FLAGS)
    with open(descriptor, "rb", buffering=0) as stream:  # noqa: PTH123 -- a descriptor
        found = os.fstat(descriptor)
        _check_regular(found.st_mode)
        if mtime_ns is not None and found.st_mtime_ns != mtime_ns:
            raise OSError("the file around the image has changed since it was listed")
        wanted = found.st_size if size is None else size
        if wanted > MAX_BYTES:
            raise OSError(f"it has {wanted:,} bytes, more than the limit of {MAX_BYTES:,}")
        stream.seek(start)
        data = stream.read() if size is None else stream.read(size)
    if size is not None and len(data) != size:
        raise OSError(f"the file ends after {len(data):,} of {size:,} bytes")
    return FileContent(data, found.st_mtime_ns)


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(f"not a file but {_KINDS.get(stat.S_IFMT(mode), 'something else')}")
