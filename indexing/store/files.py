"""Files on disk: written whole or not at all, recognised by size and hash.

A data file is complete, on the disk and hashed before any manifest names it, and is never
rewritten afterwards: a reader may have it memory-mapped.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import msgspec

TEMPORARY = ".tmp"
"""End of the name of a file that is being written."""

REMEDY = "; restore it from a copy or build the index again"

FILE_NAME = re.compile(
    r"img_emb/img_emb_\d{6,}\.npy"
    r"|metadata/metadata_\d{6,}\.parquet"
    r"|failures/failures_\d{6,}\.parquet"
    r"|index/knn_g\d+\.faiss"
    r"|tombstones_g\d+\.npy"
)
"""What data files of an index are called, below its folder."""


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


class Written(NamedTuple):
    """What a finished file looks like: its size in bytes and its SHA-256 in hex."""

    bytes: int
    sha256: str


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> Written:
    """Write a file so that `path` holds all of it or what was there before, even after a crash.

    Args:
        path: Where the file goes; its folder must exist.
        write: Called with a binary stream to fill.

    Raises:
        OSError: If the disk is full or the file did not arrive on it whole. What was written of
            it is removed.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        written = _write_and_sync(temporary, write)
        temporary.replace(path)
    except OSError as error:
        _discard(temporary)
        if error.filename or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        _discard(temporary)
        raise
    sync_folder(path.parent)
    return written


def _write_and_sync(path: Path, write: Callable[[BinaryIO], object]) -> Written:
    with path.open("wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())
        expected = stream.tell()
    if (found := path.stat().st_size) != expected:
        raise OSError(f"wrote {expected:,} bytes to {path} but {found:,} are there")
    return Written(expected, sha256_of(path))


def _discard(path: Path) -> None:
    with suppress(OSError):  # what matters is the error that brought us here
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def store(folder: Path, name: str, rows: int, write: Callable[[BinaryIO], object]) -> StoredFile:
    """Write a data file of an index and return what the manifest says about it."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    written = write_atomically(path, write)
    return StoredFile(name=name, rows=rows, bytes=written.bytes, sha256=written.sha256)


def check_size(folder: Path, file: StoredFile) -> None:
    """Refuse a file that is missing or cut off.

    Raises:
        ValueError: If it is.
    """
    path = folder / file.name
    if not path.is_file():
        raise damaged(path, "it is missing")
    if (found := path.stat().st_size) != file.bytes:
        raise damaged(path, f"it has {found:,} bytes, the manifest says {file.bytes:,}")


def check_hash(folder: Path, file: StoredFile) -> None:
    """Refuse a file whose content is not what was written.

    Raises:
        ValueError: If its SHA-256 differs from the manifest's.
    """
    if sha256_of(folder / file.name) != file.sha256:
        raise damaged(folder / file.name, "its content is not what was written")


def damaged(path: Path, reason: str) -> ValueError:
    """Return the error for a file of an index that cannot be trusted."""
    return ValueError(f"{path} is damaged: {reason}{REMEDY}")


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
