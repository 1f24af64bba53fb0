"""Files on disk: written whole or not at all, recognised by size and hash.

A data file is complete, on the disk and hashed before any manifest names it, and is never
rewritten afterwards: a reader may have it memory-mapped. Nor is its name used again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

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
