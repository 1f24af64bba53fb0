"""The folder of an index: its state read and committed, by one writer at a time; what is left over.

`commit` makes a manifest the state of the index in one step. Readers keep what they opened.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from indexing.store.files import FILE_NAME, check_size, refuse_other_than_files
from indexing.store.lock import Lock, lock_file
from indexing.store.manifest import MANIFEST, MAX_BYTES, Manifest
from matvit import TEMPORARY, check_json_size, read_file, sync_folder, write_atomically

LOCK = "LOCK"
PREVIOUS = f"{MANIFEST}.prev"
_UNUSED_FILES, _UNUSED_BYTES = 16, 1 << 26  # so many stay until there are more, or `compact`
_FOLDERS = ("img_emb", "metadata", "failures", "index")
_TEMPORARY = rf"(\.[0-9a-f]{{16}})?{re.escape(TEMPORARY)}"
_MANIFESTS = rf"{re.escape(MANIFEST)}(\.prev)?"
_LEFT_BY_A_KILLED_BUILD = re.compile(rf"{LOCK}|{'|'.join(_FOLDERS)}|{_MANIFESTS}{_TEMPORARY}")
_WRITTEN_BY_US = re.compile(rf"({FILE_NAME.pattern})({_TEMPORARY})?|{_MANIFESTS}{_TEMPORARY}")
_NUMBER = re.compile(r"(img_emb|metadata|failures)_(?P<number>\d{6,15})\.")
_GENERATION = re.compile(r"(knn|tombstones)_g(?P<number>\d{1,15})\.")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an index.

    Raises:
        FileNotFoundError: If there is none: no index, or a build that never finished.
        ValueError: If it cannot be read; the message says why.
    """
    path = folder / MANIFEST
    try:
        return Manifest.from_json(read_file(path, max_bytes=MAX_BYTES).data)
    except (FileNotFoundError, NotADirectoryError) as error:
        what_to_do = way_back(folder) or "; build one with `matvit index build`"
        raise FileNotFoundError(
            f"no index at {folder}: it has no {MANIFEST}{what_to_do}"
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # that says nothing of the manifest
        raise ValueError(f"cannot read {path}: {error}{way_back(folder)}") from error


def read_finished(folder: Path) -> Manifest:
    """Read the manifest of an index that can be searched.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be read, or the build is unfinished; the message says what to do.
    """
    manifest = read_manifest(folder)
    if manifest.plan is not None:
        if manifest.plan.share is not None:
            raise ValueError(
                f"{folder} is shard {manifest.plan.share} of an index; once all are made: "
                f"matvit index build --shards {folder.parent} --out INDEX"
            )
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


def way_back_to_whole(folder: Path, manifest: Manifest) -> str:
    """What to do about files that are damaged; nothing unless the state before is there."""
    try:
        before = Manifest.from_json(read_file(folder / PREVIOUS, max_bytes=MAX_BYTES).data)
        for file in before.files:
            check_size(folder, file)
    except (OSError, ValueError):
        return ""
    return way_back(folder) if before != manifest else ""


@dataclass
class _Writer:
    """Who writes an index here and now.

    Attributes:
        lock: That it holds.
        state: The manifest as the writer knows it, None if there is none.
        commits: How many it made.
    """

    lock: Lock
    state: bytes | None
    commits: int = 0


_writers: dict[Path, _Writer] = {}  # of this process, by folder


def commit(folder: Path, manifest: Manifest) -> None:
    """Make `manifest` the state of the index; the state before stays as `manifest.json.prev`.

    Raises:
        BlockingIOError: If the writer's lock was deleted, or somebody else has committed.
        ValueError: If the manifest would be too large to be read again.
    """
    writer, before, after = _writers.get(folder), _state(folder), manifest.to_json()
    if len(after) > MAX_BYTES:
        raise ValueError(
            f"the manifest of {folder} would have {len(after):,} bytes, more than the limit of "
            f"{MAX_BYTES:,}; make several indexes of these images"
        )
    check_json_size(after.decode())
    if writer is not None:
        writer.lock.check()
        if writer.state != before:
            raise BlockingIOError(
                f"{folder} was changed by another process although it was locked; "
                "what this one did does not count: run the same command again"
            )
    if before is not None:
        write_atomically(folder / PREVIOUS, lambda stream: stream.write(before))
    write_atomically(
        folder / MANIFEST,
        lambda stream: stream.write(after),
        ready=writer.lock.check if writer is not None else lambda: None,
    )
    if writer is not None:
        writer.state, writer.commits = after, writer.commits + 1


def _state(folder: Path) -> bytes | None:
    try:
        return read_file(folder / MANIFEST, max_bytes=MAX_BYTES).data
    except FileNotFoundError:
        return None


def free_shard(folder: Path, manifest: Manifest) -> int:
    """Number of the next shard or list of failures: one that no file has, whoever wrote it."""
    return max(manifest.next_shard, 1 + _highest(folder, _NUMBER))


def free_generation(folder: Path, manifest: Manifest) -> int:
    """Number of the next generation: one that no file has, whoever wrote it."""
    return 1 + max(manifest.generation, _highest(folder, _GENERATION))


def _highest(folder: Path, pattern: re.Pattern[str]) -> int:
    names = (path.name for path in _files_in(folder))
    return max(
        (int(found["number"]) for name in names if (found := pattern.match(name))), default=-1
    )


def _files_in(folder: Path) -> list[Path]:
    """Whatever is in the folder of an index, and in the folders in it."""
    return [path for name in ("", *_FOLDERS) for path in sorted((folder / name).glob("*"))]


@contextmanager
def new_index(path: Path) -> Iterator[Manifest | None]:
    """Reserve a folder for one writer; leave nothing behind if the build fails before a commit.

    Yields:
        The state of an unfinished build, if there is one.
    """
    _check_vacant(path)
    existed = path.exists()
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)
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
    foreign = names
    if LOCK in names:
        foreign = {name for name in names if not _LEFT_BY_A_KILLED_BUILD.fullmatch(name)}
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

    Who has committed leaves few files but those of its state and of the one before.

    Raises:
        BlockingIOError: If somebody else is writing; the message names them.
        ValueError: If a link or anything else is where a file or a folder of an index should be.
    """
    with lock_file(folder / LOCK, "written") as lock:
        _refuse_links(folder)
        writer, other = _Writer(lock, _state(folder)), _writers.get(folder)
        _writers[folder] = writer
        try:
            yield
            if writer.commits and lock.is_at_its_place():
                _tidy(folder)
        finally:
            if other is None:
                del _writers[folder]
            else:
                _writers[folder] = other  # whose lock was deleted, which it has yet to notice


def _refuse_links(folder: Path) -> None:
    """Refuse to write where what is written, or removed, might be somewhere else."""
    for name in _FOLDERS:
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR((folder / name).lstat().st_mode):
                raise ValueError(
                    f"{folder / name} is a link or a file, but has to be a folder in an index that "
                    "is written to: put the folder itself in its place"
                )
    for path in _files_in(folder):
        name = path.relative_to(folder).as_posix()
        if name in (MANIFEST, PREVIOUS) or _WRITTEN_BY_US.fullmatch(name):
            refuse_other_than_files(path)


def _tidy(folder: Path) -> None:
    """Remove what neither the state nor the one before refers to, once it is much."""
    with suppress(OSError, ValueError):  # it can wait
        current = read_manifest(folder)
        before = Manifest.from_json(read_file(folder / PREVIOUS, max_bytes=MAX_BYTES).data)
        unused = orphans(folder, current, before)
        much = sum(path.lstat().st_size for path in unused) > _UNUSED_BYTES
        if current.plan is None and (much or len(unused) > _UNUSED_FILES):
            sweep(folder, current, before)


def double(folder: Path) -> None:
    """Make the state before the same as the state: nothing refers to older files any more."""
    current = _state(folder)
    assert current is not None
    write_atomically(folder / PREVIOUS, lambda stream: stream.write(current))


def orphans(folder: Path, *manifests: Manifest) -> list[Path]:
    """Files that an index once wrote, or began to write, and that none of `manifests` names."""
    named = {file.name for manifest in manifests for file in manifest.files}
    return [
        path
        for path in _files_in(folder)
        if (name := path.relative_to(folder).as_posix()) not in named
        and _WRITTEN_BY_US.fullmatch(name)
    ]


def sweep(folder: Path, *manifests: Manifest) -> int:
    """Remove orphans and return how many bytes that freed.

    Only for the writer of an index. A file that somebody has open on Windows stays an orphan.
    """
    freed = 0
    for path in orphans(folder, *manifests):
        size = path.lstat().st_size
        with suppress(PermissionError):
            path.unlink()
            freed += size
    return freed


def remove_index(folder: Path) -> None:
    """Remove all that an index wrote below `folder` but its lock: the manifests first."""
    (folder / PREVIOUS).unlink(missing_ok=True)  # without the other it would stand for an index
    (folder / MANIFEST).unlink(missing_ok=True)
    sweep(folder)
    for name in _FOLDERS:
        with suppress(OSError):  # missing, or holds something that is not ours
            (folder / name).rmdir()
