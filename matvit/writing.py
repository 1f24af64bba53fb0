"""Writing files: whole or not at all, whatever happens, and sealed so that damage is noticed."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from matvit.files import open_regular

TEMPORARY = ".tmp"
"""End of the name of a file that is being written; nobody can guess the digits before it."""

SEAL = "sha256"
"""Key of the hash of all other keys."""


class Written(NamedTuple):
    """What a finished file looks like: its size in bytes and its SHA-256 in hex."""

    bytes: int
    sha256: str


def write_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    new: bool = False,
    ready: Callable[[], object] = lambda: None,
) -> Written:
    """Write a file so that `path` holds all of it or what was there before, even after a crash.

    A link at `path` is replaced, not followed.

    Args:
        path: Where the file goes; its folder must exist.
        write: Called with a binary stream to fill.
        new: Replace nothing.
        ready: Called when all is on the disk, just before it counts; may still refuse.

    Raises:
        FileExistsError: If something is there that must not be replaced.
        OSError: If the disk is full or the file did not arrive on it whole. What was written of
            it is removed.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    made = [temporary]
    try:
        written = _write_and_sync(temporary, write)
        ready()
        if new:
            path.open("xb").close()  # takes the name, whoever else may want it
            made.append(path)
        temporary.replace(path)
    except BaseException as error:
        for file in made:
            _discard(file)
        if not isinstance(error, OSError) or error.filename not in (None, str(temporary)):
            raise
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_folder(path.parent)
    return written


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error that names no file, such as that of a full disk, the name of this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_and_sync(path: Path, write: Callable[[BinaryIO], object]) -> Written:
    with path.open("xb") as stream:
        noting = _Noting(stream)
        try:
            write(cast("BinaryIO", noting))
        except Exception as error:
            raise noting.failed or error from error
        stream.flush()
        os.fsync(stream.fileno())
        expected = stream.tell()
    if (found := path.stat().st_size) != expected:
        raise OSError(f"wrote {expected:,} bytes to {path} but {found:,} are there")
    return Written(expected, sha256_of(path))


class _Noting:
    """A stream that notes why it could not be written: FAISS and Arrow lose the reason."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.failed: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._stream.write(data)
        except OSError as error:
            self.failed = error
            raise

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever else streams can do
        return getattr(self._stream, name)


def _discard(path: Path) -> None:
    with suppress(OSError):  # what matters is the error that brought us here
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sealed(values: dict[str, Any]) -> bytes:
    """Return values as indented JSON, with the hash of them all as the last key.

    Raises:
        ValueError: If a number among them is not finite.
    """
    text = json.dumps({**values, SEAL: _digest(values)}, indent=2, allow_nan=False)
    return text.encode() + b"\n"


def is_whole(values: dict[str, Any]) -> bool:
    """Whether values that were read are those that were sealed; True if they have no seal."""
    seal = values.get(SEAL)
    return seal is None or seal == _digest({k: v for k, v in values.items() if k != SEAL})


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
