"""Verifying an index: every file read, every hash and norm checked, a sample searched for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import ParamSpec

from tqdm import tqdm

from indexing.checks import check_rows, check_search
from indexing.search.live import check_searcher_file, read_searcher, store_searcher
from indexing.store.embeddings import Embeddings
from indexing.store.files import REMEDY, StoredFile, check_size
from indexing.store.folder import commit, orphans, read_finished, read_manifest, writer_lock
from indexing.store.manifest import MANIFEST, Manifest
from indexing.store.rows import METADATA, StoredRows, read_failures, read_tables, read_tombstones

_Arguments = ParamSpec("_Arguments")

_SAMPLED_ROWS = 1_000
_ROWS_PER_READ = 65_536


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A file that cannot be trusted: its name below the index folder, and why."""

    file: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What verifying found.

    Attributes:
        generation: That was verified.
        images: In the index.
        files: How many were read.
        bytes: How many were read.
        sampled: Images that were searched for.
        damaged: What cannot be trusted.
        repaired: Files that were damaged and were made anew from the embeddings.
        orphans: Files that no manifest names; `compact` removes them.
        seconds: It took.
    """

    generation: int
    images: int
    files: int
    bytes: int
    sampled: int
    damaged: tuple[Damage, ...]
    repaired: tuple[str, ...]
    orphans: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged


def verify(path: str | Path, *, repair: bool = False, progress: bool = False) -> VerifyReport:
    """Read all of an index and check everything that can be checked.

    Checked are size, hash, shape and row count of every file, the length of every embedding, that
    ids, counts, labels and tombstones agree, and that a sample of a thousand images find
    themselves. An index that does not open can be verified too, as long as its manifest can be
    read. A writer at work does no harm.

    Args:
        path: Folder of the index.
        repair: Make a damaged search file anew from the embeddings. Damaged embeddings, metadata
            and tombstones cannot be made anew from the index.
        progress: Show a progress bar on stderr.

    Raises:
        FileNotFoundError: If there is no index at `path`.
        ValueError: If the manifest cannot be read.
        BlockingIOError: If there is something to repair and somebody else is writing.
    """
    path, start = Path(path), perf_counter()
    manifest = read_manifest(path)
    while damaged := _examine(path, manifest, progress):
        if (now := read_manifest(path)) == manifest:
            break
        manifest = now  # a writer has meanwhile removed what we were reading
    repaired: tuple[str, ...] = ()
    search = manifest.index and manifest.index.file.name
    if repair and damaged and {damage.file for damage in damaged} == {search}:
        manifest = _repair(path, progress)
        repaired, damaged = (str(search),), _examine(path, manifest, progress)
    return VerifyReport(
        generation=manifest.generation,
        images=manifest.counts.images,
        files=len(manifest.files) + 1,
        bytes=sum(file.bytes for file in manifest.files) + (path / MANIFEST).stat().st_size,
        sampled=min(_SAMPLED_ROWS, manifest.counts.images),
        damaged=tuple(damaged),
        repaired=repaired,
        orphans=tuple(file.relative_to(path).as_posix() for file in orphans(path, manifest)),
        seconds=perf_counter() - start,
    )


def _examine(path: Path, manifest: Manifest, progress: bool) -> list[Damage]:
    """Check all files one by one, and then, if each is whole, all of them together."""
    damaged = []
    total = sum(file.bytes for file in manifest.files)
    with tqdm(
        total=total, desc="verifying", unit="B", unit_scale=True, disable=not progress
    ) as bar:
        for file in manifest.files:
            if problem := _problem(path, file.name, _check_file, path, manifest, file):
                damaged.append(Damage(file=file.name, problem=problem))
            bar.update(file.bytes)
    if not damaged and manifest.index is not None:
        for name, check in ((MANIFEST, _check_rows), (manifest.index.file.name, _check_search)):
            if not damaged and (problem := _problem(path, name, check, path, manifest)):
                damaged.append(Damage(file=name, problem=problem))
    return damaged


def _problem(
    path: Path,
    name: str,
    check: Callable[_Arguments, None],
    *given: _Arguments.args,
    **named: _Arguments.kwargs,
) -> str | None:
    """What is wrong, in the words of the error that a check raises."""
    try:
        check(*given, **named)
    except (OSError, ValueError) as error:
        text = str(error).removeprefix(f"{path / name} is damaged: ")
        return text.removesuffix(REMEDY)
    return None


def _check_file(path: Path, manifest: Manifest, file: StoredFile) -> None:
    """Read all of one file."""
    check_size(path, file)
    folder = file.name.partition("/")[0]
    if folder == "img_emb":
        table = Embeddings(path, [file], manifest.encoder.dim)
        for start in range(0, max(1, len(table)), _ROWS_PER_READ):
            table[start : start + _ROWS_PER_READ]
    elif folder == "metadata":
        read_tables(path, [file], METADATA)
    elif folder == "failures":
        read_failures(path, [file])
    elif folder == "index":
        assert manifest.index is not None
        check_searcher_file(path, manifest.index, manifest.encoder.dim)
    else:
        read_tombstones(path, file)


def _check_rows(path: Path, manifest: Manifest) -> None:
    check_rows(path, manifest, StoredRows(path, manifest, manifest.shards))
    StoredRows(path, manifest, (*manifest.shards, *manifest.staged))


def _check_search(path: Path, manifest: Manifest) -> None:
    assert manifest.index is not None
    rows = StoredRows(path, manifest, manifest.shards)
    searcher = read_searcher(path, manifest.index, rows)
    check_search(path, manifest, rows, searcher, samples=_SAMPLED_ROWS)


def _repair(path: Path, progress: bool) -> Manifest:
    """Make the search file anew from the embeddings, as a generation of its own."""
    with writer_lock(path):
        manifest = read_finished(path)
        assert manifest.index is not None
        rows = StoredRows(path, manifest, manifest.shards)
        check_rows(path, manifest, rows)
        generation, asked = manifest.generation + 1, manifest.index.request
        vectors, ids = rows.live_embeddings(), rows.ids[rows.live]
        index = store_searcher(path, generation, asked, vectors, ids, progress=progress)
        manifest = replace(manifest, generation=generation, index=index)
        commit(path, manifest)
    return manifest
