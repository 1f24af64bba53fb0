"""One at a time: a lock on a file that dies with its process.

The lock is on the file, not on its name. If somebody deletes the file, another process can make and
lock a new one; so whoever holds a lock looks again before it does what only one may do.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from indexing.store.files import refuse_other_than_files

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        os.lseek(descriptor, _BEHIND_THE_NOTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_BEHIND_THE_NOTE = 1 << 20  # Windows lets nobody read what is locked
_MOST_OF_A_NOTE = 300
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Lock:
    """A lock that is held.

    Args:
        path: Of the file.
        descriptor: Of the same file, locked.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def is_at_its_place(self) -> bool:
        """Whether the file that is locked is the one that others would lock."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.lstat())
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Make sure that nobody else can believe to be the only one.

        Raises:
            BlockingIOError: If the file was deleted or replaced.
        """
        if not self.is_at_its_place():
            raise BlockingIOError(
                f"{self._path} was deleted while it was held, so another process may be writing "
                "too; what this one did meanwhile does not count: run the same command again"
            )


@contextmanager
def lock_file(path: Path, done: str) -> Iterator[Lock]:
    """Hold the lock on a file, which is made if there is none.

    Args:
        path: Of the file.
        done: What is done to its folder meanwhile: "written".

    Raises:
        BlockingIOError: If somebody else holds it; the message names them.
        ValueError: If there is something else than a file.
    """
    lock, descriptor = _acquire(path, done)
    try:
        with suppress(OSError):  # on a full disk; the note is a nicety
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield lock
    finally:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _acquire(path: Path, done: str) -> tuple[Lock, int]:
    while True:
        refuse_other_than_files(path)
        descriptor = os.open(path, _FLAGS, 0o644)
        try:
            refuse_other_than_files(path)
            _take(descriptor)
        except (BlockingIOError, PermissionError):
            holder = _note(descriptor)
            os.close(descriptor)
            raise BlockingIOError(
                f"{path.parent} is being {done} by {holder or 'another process'}; "
                "wait until it is done or stop it"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        lock = Lock(path, descriptor)
        if lock.is_at_its_place():
            return lock, descriptor
        os.close(descriptor)  # it was deleted while we were about to lock it


def _note(descriptor: int) -> str:
    """Who says to hold the lock; whoever wrote that may have written anything."""
    text = os.read(descriptor, _MOST_OF_A_NOTE).decode(errors="replace").strip()
    return text if text.isprintable() else ""
