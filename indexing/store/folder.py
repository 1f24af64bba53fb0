"""The folder of an index: its state read and committed, by one writer at a time; what is left over.

`commit` makes a manifest the state of the index in one step. Readers keep what they opened.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from indexing.store.files import FILE_NAME, TEMPORARY, write_atomically
from indexing.store.manifest import MANIFEST, MAX_BYTES, Manifest

LOCK = "LOCK"
PREVIOUS = f"{MANIFEST}.prev"
_FOLDERS = ("img_emb", "metadata", "failures", "index")
_LEFT_BY_A_KILLED_BUILD = {LOCK, f"{MANIFEST}{TEMPORARY}", *_FOLDERS}
_WRITTEN_BY_US = re.compile(
    rf"({FILE_NAME.pattern})({re.escape(TEMPORARY)})?"
    rf"|({re.escape(MANIFEST)}|{re.escape(PREVIOUS)}){re.escape(TEMPORARY)}"
)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an index.

    Raises:
        FileNotFoundError: If there is none: no index, or a build that never finished.
        ValueError: If it cannot be read; the message says why.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what_to_do = way_back(folder) or "; build one with `matvit index build`"
        raise FileNotFoundError(f"no index at {folder}: it has no {MANIFEST}{what_to_do}")
    try:
        with path.open("rb") as stream:
            return Manifest.from_json(stream.read(MAX_BYTES + 1))
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}{way_back(folder)}") from error


def read_finished(folder: Path) -> Manifest:
    """Read the manifest of an index that can be searched.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be read, or the build is unfinished; the message says what to do.
    """
    manifest = read_manifest(folder)
    if manifest.plan is not None:
        done = min(len(manifest.staged) * manifest.plan.shard_size, manifest.corpus.images)
        raise ValueError(
            f"{folder} is unfinished: {done:,} of {manifest.corpus.images:,} images are stored; "
            "run the same `matvit index build` again to finish it"
        )
    return manifest


def way_back(folder: Path) -> str:
    """What to do about a manifest that cannot be read; nothing if there is no earlier one."""
    if not (folder / PREVIOUS).is_file():
        return ""
    return f"; the state before it is in {PREVIOUS}: copy that to {MANIFEST} to go back"


def commit(folder: Path, manifest: Manifest) -> None:
    """Make `manifest` the state of the index; the state before stays as `manifest.json.prev`."""
    path = folder / MANIFEST
    if path.exists():
        before = path.read_bytes()
        write_atomically(folder / PREVIOUS, lambda stream: stream.write(before))
    write_atomically(path, lambda stream: stream.write(manifest.to_json()))


@contextmanager
def new_index(path: Path) -> Iterator[Manifest | None]:
    """Reserve a folder for one writer; leave nothing behind if the build fails before a commit.

    Yields:
        The state of an unfinished build, if there is one.
    """
    _check_vacant(path)
    existed = path.exists()
    path.mkdir(parents=True, exist_ok=True)
    with writer_lock(path):
        _check_vacant(path)  # another build may have finished in between
        try:
            yield read_manifest(path) if (path / MANIFEST).exists() else None
        except BaseException:
            if not (path / MANIFEST).exists():
                with suppress(OSError):  # what matters is the error that brought us here
                    remove_index(path)
                    (path / LOCK).unlink()
                    if not existed:
                        path.rmdir()
            raise


def _check_vacant(path: Path) -> None:
    """Refuse a place that holds anything but an unfinished build or what a killed one leaves.

    Raises:
        FileExistsError: If it does; the message says what.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file; an index is a folder, choose another name")
    if (path / MANIFEST).exists():
        _check_unfinished(path)
        return
    names = {entry.name for entry in path.iterdir()}
    if {LOCK, PREVIOUS} <= names:  # no build leaves these without a manifest: there was an index
        raise FileExistsError(
            f"{path} holds an index whose {MANIFEST} is gone{way_back(path)}; "
            "or choose another folder"
        )
    foreign = names if LOCK not in names else names - _LEFT_BY_A_KILLED_BUILD
    if foreign:
        raise FileExistsError(
            f"{path} is not empty and not an index (it holds {min(foreign)!r}); "
            "choose another folder"
        )


def _check_unfinished(path: Path) -> None:
    try:
        manifest = read_manifest(path)
    except ValueError:
        size = "images that cannot be read"
    else:
        if manifest.plan is not None:
            return
        size = f"{manifest.counts.images:,} images"
    raise FileExistsError(
        f"{path} already holds an index of {size}; "
        "add to it with `matvit index add`, choose another folder or remove it"
    )


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Be the only writer of an index; the lock dies with the process.

    Raises:
        BlockingIOError: If somebody else is writing; the message names them.
    """
    path = folder / LOCK
    holder = ""
    with suppress(OSError):
        holder = path.read_text(encoding="utf-8").strip()
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"{folder} is being written by {holder or 'another process'}; "
            "wait until it is done or stop it"
        ) from None
    try:
        with suppress(OSError):  # Windows lets nobody write to a locked file; the note is a nicety
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def double(folder: Path) -> None:
    """Make the state before the same as the state: nothing refers to older files any more."""
    current = (folder / MANIFEST).read_bytes()
    write_atomically(folder / PREVIOUS, lambda stream: stream.write(current))


def orphans(folder: Path, manifest: Manifest | None) -> list[Path]:
    """Files that an index once wrote, or began to write, and that `manifest` does not name.

    Args:
        folder: The index.
        manifest: What counts; None for nothing.
    """
    named = set() if manifest is None else {file.name for file in manifest.files}
    candidates = [path for name in ("", *_FOLDERS) for path in sorted((folder / name).glob("*"))]
    return [
        path
        for path in candidates
        if (name := path.relative_to(folder).as_posix()) not in named
        and _WRITTEN_BY_US.fullmatch(name)
    ]


def sweep(folder: Path, manifest: Manifest | None) -> int:
    """Remove orphans and return how many bytes that freed.

    Only for the writer of an index. A file that somebody has open on Windows stays an orphan.
    """
    freed = 0
    for path in orphans(folder, manifest):
        size = path.stat().st_size
        with suppress(PermissionError):
            path.unlink()
            freed += size
    return freed


def remove_index(folder: Path) -> None:
    """Remove all that an index wrote below `folder` but its lock: the manifests first."""
    (folder / PREVIOUS).unlink(missing_ok=True)  # without the other it would stand for an index
    (folder / MANIFEST).unlink(missing_ok=True)
    sweep(folder, None)
    for name in _FOLDERS:
        with suppress(OSError):  # missing, or holds something that is not ours
            (folder / name).rmdir()
