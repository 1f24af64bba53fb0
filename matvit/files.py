"""Reading files that somebody else put there: whole, regular, of a size and shape that fit."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import stat
from typing import NamedTuple, TypeVar

import msgspec

MAX_BYTES = 1 << 30
"""A larger file is refused instead of read; the largest image that is decoded needs less."""

MAX_JSON_BYTES = 1 << 24
"""The same for JSON, which takes many times as much memory as it has bytes."""

MAX_JSON_VALUES = 1 << 22
"""JSON of more values is refused: each takes 50 bytes or more, and an empty list is two long."""

_Read = TypeVar("_Read")

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class FileContent(NamedTuple):
    """The bytes of an image file, and when it was modified before they were read."""

    data: bytes
    mtime_ns: int


class _Version(msgspec.Struct):
    """Of a file that may have any other keys."""

    format_version: int


def read_json(
    path: str | os.PathLike[str],
    kind: type[_Read],
    what: str,
    *,
    version: int | None = None,
    max_bytes: int = MAX_JSON_BYTES,
) -> _Read:
    """Read a JSON file as `kind`, strictly: nothing is converted, NaN is no number.

    A `kind` that is a `msgspec.Struct` with `forbid_unknown_fields` has exactly its keys, and
    `msgspec.Meta` in its annotations says within which bounds its values are.

    Args:
        path: A regular file.
        kind: What the JSON must describe.
        what: The same in words, for messages: "the settings of an encoder".
        version: What its key `format_version` must be; looked at before all others, so that a
            file of the future is not called damaged. None for files without.
        max_bytes: A larger file is refused unread.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it cannot be read, or is anything else; the message is one line.
    """
    try:
        data = read_file(path, max_bytes=max_bytes).data
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    return parse_json(data, kind, what, version=version, where=str(path))


def parse_json(
    data: bytes | str,
    kind: type[_Read],
    what: str,
    *,
    version: int | None = None,
    where: str = "it",
) -> _Read:
    """Read JSON text as `kind`; see `read_json`.

    Raises:
        ValueError: If it is anything else; the message begins with `where`.
    """
    try:
        values = _plain_values(data)
        found = None if version is None else msgspec.convert(values, _Version).format_version
        if found == version:
            return msgspec.convert(values, kind)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not {what}: {error}") from error
    raise ValueError(f"{where} has format version {found}, this program reads version {version}")


def _plain_values(data: bytes | str) -> object:
    """Read JSON by Python's own reader.

    Names of files that are no UTF-8 come as lone surrogates, which msgspec's does not take. A key
    that comes twice, NaN and numbers beyond all bounds are refused.

    Raises:
        ValueError: If it is no such JSON.
    """
    text = data if isinstance(data, str) else data.decode()
    check_json_size(text)
    return json.loads(
        text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_without_duplicates
    )


def check_json_size(text: str) -> None:
    """Refuse JSON of so many values that reading it would fill the memory.

    Raises:
        ValueError: If it has too many.
    """
    if (values := sum(map(text.count, ",[{"))) > MAX_JSON_VALUES:
        raise ValueError(f"it has {values:,} values, more than the limit of {MAX_JSON_VALUES:,}")


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number:.20} is not a finite number")
    return value


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in values if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return values


def read_file(path: str | bytes | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> FileContent:
    """Read a regular file; opening a FIFO would wait for a writer that may never come.

    Raises:
        OSError: If it cannot be read, is something else than a file, or is too large.
    """
    return read_part(path, 0, None, max_bytes=max_bytes)


def read_part(
    path: str | bytes | os.PathLike[str],
    start: int,
    size: int | None,
    mtime_ns: int | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> FileContent:
    """Read `size` bytes from `start` on; None for the rest of the file.

    Args:
        path: A regular file.
        start: First byte.
        size: How many; all of them must be there.
        mtime_ns: When the file must have been modified last, as `modified_ns` has it; None for
            any time.
        max_bytes: More is refused.

    Raises:
        OSError: If that is not possible; the message says why.
    """
    with open_regular(path) as stream:
        found = os.fstat(stream.fileno())
        if mtime_ns is not None and modified_ns(found) != mtime_ns:
            raise OSError("the file around the image has changed since it was listed")
        wanted = found.st_size if size is None else size
        if wanted > max_bytes:
            raise OSError(f"it has {wanted:,} bytes, more than the limit of {max_bytes:,}")
        stream.seek(start)
        data = stream.read() if size is None else stream.read(size)
    if size is not None and len(data) != size:
        raise OSError(f"the file ends after {len(data):,} of {size:,} bytes")
    return FileContent(data, modified_ns(found))


def open_regular(path: str | bytes | os.PathLike[str]) -> io.FileIO:
    """Open a regular file to read it; whatever else is there is neither waited for nor touched.

    Raises:
        OSError: If it cannot be opened, or is something else than a file.
    """
    check_regular(os.stat(path))  # noqa: PTH116 -- opening a device can have effects
    stream = io.FileIO(os.open(path, _FLAGS))
    try:
        check_regular(os.fstat(stream.fileno()))
    except OSError:
        stream.close()
        raise
    return stream


def modified_ns(found: os.stat_result) -> int:
    """When a file was last modified, in nanoseconds, as 64 bits hold it.

    That is from 1677 to 2262. Any other time comes out as one of these, always the same.
    """
    return (found.st_mtime_ns + (1 << 63)) % (1 << 64) - (1 << 63)


def is_exhaustion(error: BaseException) -> bool:
    """Whether the machine is out of memory or file descriptors: that says nothing of any file."""
    if isinstance(error, OSError):
        return error.errno in _EXHAUSTED
    return isinstance(error, MemoryError)


def check_regular(found: os.stat_result) -> None:
    """Refuse what is no regular file.

    Raises:
        OSError: If it is something else; the message says what.
    """
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(f"not a file but {kind}")
