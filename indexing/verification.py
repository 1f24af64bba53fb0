"""Whether an index is whole: what opening it checks, and what verifying checks besides.

Verifying reads every file, checks every hash and norm, and searches for a larger sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import ParamSpec

import numpy as np
from jaxtyping import Int64
from msgspec.structs import replace
from numpy import ndarray

from indexing.corpus.originals import Originals, complaints
from indexing.images import Searcher
from indexing.records import NO_LABEL
from indexing.search.live import LiveSearcher
from indexing.search.making import check_search_file, read_searcher, store_searcher
from indexing.store.embeddings import Embeddings, Vectors
from indexing.store.files import REMEDY, StoredFile, check_size, damaged, is_of_machine
from indexing.store.folder import (
    commit,
    free_generation,
    orphans,
    read_finished,
    read_manifest,
    writer_lock,
)
from indexing.store.manifest import MANIFEST, Manifest, SearchRecord
from indexing.store.rows import (
    METADATA,
    StoredRows,
    column,
    read_failures,
    read_tables,
    read_tombstones,
)
from matvit import is_exhaustion, progress_of

_Arguments = ParamSpec("_Arguments")

_SAMPLED_ROWS = 1_000
_ROWS_PER_READ = 65_536
_SAME_SCORE = 1e-6  # of a duplicate, up to float32 rounding
_ALIKE = 0.05  # of images that 4 bits per coordinate do not tell apart


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A file that cannot be trusted, or be read: its name below the index folder, and why."""

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
        unreadable: What could not be read this time: that says nothing of what is in it.
        repaired: Files that were damaged and were made anew from the embeddings.
        orphans: Files that no manifest names; `compact` removes them.
        compared: Original images that were read.
        changed: Those that are gone, cannot be read, or are not what was indexed.
        seconds: It took.
    """

    generation: int
    images: int
    files: int
    bytes: int
    sampled: int
    damaged: tuple[Damage, ...]
    unreadable: tuple[Damage, ...]
    repaired: tuple[str, ...]
    orphans: tuple[str, ...]
    compared: int
    changed: tuple[Damage, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether everything could be read, and nothing is damaged."""
        return not (self.damaged or self.unreadable)


def open_checked(
    path: Path, manifest: Manifest, *, samples: int = 64, device: str = "cpu", mmap: bool = False
) -> tuple[StoredRows, LiveSearcher]:
    """Open all that is searched, and make sure that its parts speak of the same images.

    No hash of one file can tell that. Checked are counts, classes and ids, and that a sample of
    the images find themselves.

    Args:
        path: The index.
        manifest: Its state, with something to search.
        samples: How many images are searched for.
        device: Where to search; see `ImageIndex.open`.
        mmap: Leave lists on disk; see `ImageIndex.open`.

    Raises:
        ValueError: If something is damaged, or the device cannot be had.
    """
    assert manifest.index is not None
    # Everything is opened here, so that nothing is missed when a writer removes files later.
    rows = StoredRows(path, manifest, manifest.shards)
    check_rows(path, manifest, rows)
    found = read_searcher(path, manifest.index, *rows.searchable(), device=device, mmap=mmap)
    searcher = LiveSearcher(found, rows.ids[rows.live])
    _check_samples(path, manifest, rows, searcher, samples)
    return rows, searcher


def check_rows(path: Path, manifest: Manifest, rows: StoredRows) -> None:
    """Make sure that the rows are as many as the manifest counts, and of its classes.

    Raises:
        ValueError: If they are not.
    """
    if len(rows.live) != manifest.counts.images:
        raise damaged(
            path / MANIFEST,
            f"it counts {manifest.counts.images:,} images, but {len(rows.live):,} are live",
        )
    labels = column(rows.metadata, "label")
    classes = len(manifest.corpus.class_names or ())
    if labels.min() < NO_LABEL or labels.max() >= classes:
        raise damaged(path / MANIFEST, f"labels are outside its {classes} class names")


def _check_samples(
    path: Path, manifest: Manifest, rows: StoredRows, searcher: LiveSearcher, samples: int
) -> None:
    """Make sure that all live images can be found, and that a sample of them find themselves.

    Each must come first, or a duplicate of it. Of an approximate kind an image that is much alike
    will do, since both may have the same code, and so many may be missed as its effort leads to
    expect, or half. One made of other vectors misses nearly all. Reading the sample also checks its
    norms.
    """
    assert manifest.index is not None
    file = path / manifest.index.file.name
    ids = rows.ids[rows.live]
    if (np.diff(searcher.all_ids) <= 0).any() or not np.isin(ids, searcher.all_ids).all():
        raise damaged(file, "its ids are not those of the metadata")
    exact = _is_exact(manifest.index)
    lost = lost_rows(searcher, ids, rows.live_embeddings(), samples, exact=exact)
    if len(lost) > _expected_misses(manifest.index, min(samples, len(ids))):
        name = rows.metadata.column("path")[int(rows.live[lost[0]])].as_py()
        raise damaged(file, f"image {name} does not find itself")


def lost_rows(
    searcher: Searcher,
    ids: Int64[ndarray, " images"],
    embeddings: Vectors,
    samples: int,
    *,
    exact: bool,
) -> Int64[ndarray, " rows"]:
    """Return those of a sample of rows that do not find themselves, nor a duplicate.

    Args:
        searcher: What is asked.
        ids: Of the images, ascending.
        embeddings: Theirs.
        samples: How many images are searched for.
        exact: Whether only a duplicate will do instead; else an image that is much alike will.
    """
    chosen = np.unique(np.linspace(0, len(ids) - 1, samples).astype(np.int64))
    vectors = embeddings[chosen]
    found, _ = searcher.search(vectors, k=1)
    nearest = np.minimum(np.searchsorted(ids, found[:, 0]), len(ids) - 1)
    least = 1 - (_SAME_SCORE if exact else _ALIKE)
    same = (vectors * embeddings[nearest]).sum(axis=1) > least
    lost: Int64[ndarray, " rows"] = chosen[(ids[nearest] != found[:, 0]) | ~same]
    return lost


def _expected_misses(record: SearchRecord, samples: int) -> int:
    """Most of a sample that an approximate search may miss by chance; 0 of an exact one.

    An image is closer to itself than its tenth neighbour is, so it is found more often than the
    measured recall says: what that leads to expect and three standard errors are rarely too few.
    """
    if _is_exact(record):
        return 0
    assert record.effort is not None
    missed = 1 - record.effort.recall
    expected = math.ceil(samples * missed + 3 * math.sqrt(samples * missed * (1 - missed)))
    return max(expected, samples // 2)


def _is_exact(record: SearchRecord) -> bool:
    return record.effort is None or not record.effort.queries


def verify_index(
    path: str | Path, *, repair: bool = False, originals: bool = False, progress: bool = False
) -> VerifyReport:
    """Read all of an index and check everything that can be checked.

    Checked are size, hash, shape and row count of every file, the length of every embedding, that
    ids, counts, labels and tombstones agree, and that a sample of a thousand images find
    themselves. An index that does not open can be verified too, as long as its manifest can be
    read. A writer at work does no harm.

    Args:
        path: Folder of the index.
        repair: Make a damaged search file anew from the embeddings. Damaged embeddings, metadata
            and tombstones cannot be made anew from the index.
        originals: Also read the images themselves, and compare them with what was indexed.
        progress: Show a progress bar on stderr.

    Raises:
        FileNotFoundError: If there is no index at `path`.
        ValueError: If the manifest cannot be read.
        BlockingIOError: If there is something to repair and somebody else is writing.
    """
    path, start = Path(path), perf_counter()
    manifest = read_manifest(path)
    while any(found := _examine(path, manifest, progress)):
        if (now := read_manifest(path)) == manifest:
            break
        manifest = now  # a writer has meanwhile removed what we were reading
    damaged, unreadable = found
    repaired: tuple[str, ...] = ()
    search = manifest.index and manifest.index.file.name
    if repair and damaged and {damage.file for damage in damaged} == {search}:
        manifest = _repair(path, progress)
        repaired = (str(search),)
        damaged, unreadable = _examine(path, manifest, progress)
    compared, changed = 0, list[Damage]()
    if originals and not (damaged or unreadable):
        compared, changed = _compare_originals(path, manifest, progress)
    return VerifyReport(
        generation=manifest.generation,
        images=manifest.counts.images,
        files=len(manifest.files) + 1,
        bytes=sum(file.bytes for file in manifest.files) + (path / MANIFEST).stat().st_size,
        sampled=min(_SAMPLED_ROWS, manifest.counts.images),
        damaged=tuple(damaged),
        unreadable=tuple(unreadable),
        repaired=repaired,
        orphans=tuple(file.relative_to(path).as_posix() for file in orphans(path, manifest)),
        compared=compared,
        changed=tuple(changed),
        seconds=perf_counter() - start,
    )


def _examine(path: Path, manifest: Manifest, progress: bool) -> tuple[list[Damage], list[Damage]]:
    """Check all files one by one, and then, if each is whole, all of them together.

    Returns:
        What is damaged, and what could not be read.
    """
    found = _Findings(path)
    total = sum(file.bytes for file in manifest.files)
    with progress_of("verifying", total, unit="B", shown=progress) as bar:
        for file in manifest.files:
            found.check(file.name, _check_file, path, manifest, file)
            bar.update(file.bytes)
    if manifest.index is not None:
        for name, check in ((MANIFEST, _check_rows), (manifest.index.file.name, _check_search)):
            if not (found.damaged or found.unreadable):
                found.check(name, check, path, manifest)
    return found.damaged, found.unreadable


class _Findings:
    """What is wrong with the files of an index, in the words of the errors that checks raise."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damaged: list[Damage] = []
        self.unreadable: list[Damage] = []

    def check(
        self,
        name: str,
        check: Callable[_Arguments, None],
        *given: _Arguments.args,
        **named: _Arguments.kwargs,
    ) -> None:
        """Note what a check finds in a file.

        Raises:
            OSError: If the machine is out of descriptors; MemoryError likewise.
        """
        try:
            check(*given, **named)
        except (OSError, ValueError) as error:
            if is_exhaustion(error):
                raise
            text = str(error).removeprefix(f"{self._path / name} is damaged: ")
            found = self.unreadable if is_of_machine(error) else self.damaged
            found.append(Damage(file=name, problem=text.removesuffix(REMEDY)))


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
        check_search_file(path, manifest.index, manifest.encoder.dim)
    else:
        read_tombstones(path, file)


def _check_rows(path: Path, manifest: Manifest) -> None:
    check_rows(path, manifest, StoredRows(path, manifest, manifest.shards))
    StoredRows(path, manifest, (*manifest.shards, *manifest.staged))


def _check_search(path: Path, manifest: Manifest) -> None:
    open_checked(path, manifest, samples=_SAMPLED_ROWS)


def _compare_originals(path: Path, manifest: Manifest, progress: bool) -> tuple[int, list[Damage]]:
    """How many images there are, and which are no longer what was indexed."""
    images = StoredRows(path, manifest, manifest.shards).live_metadata()
    corpus = manifest.corpus
    originals = Originals(corpus.root, corpus.kind, corpus.selection)
    found = complaints(
        lambda row: originals.read_row(images, row),
        range(len(images)), doing="comparing", progress=progress,
    )  # fmt: skip
    changed: list[Damage] = []
    for row, error in found:
        problem = str(error)
        if isinstance(error, FileNotFoundError):
            problem = "it is gone"
        elif not isinstance(error, OSError):
            problem = "it is not the image that was indexed"
        changed.append(Damage(file=images.column("path")[row].as_py(), problem=problem))
    return len(images), changed


def _repair(path: Path, progress: bool) -> Manifest:
    """Make the search file anew from the embeddings, as a generation of its own."""
    with writer_lock(path):
        manifest = read_finished(path)
        assert manifest.index is not None
        rows = StoredRows(path, manifest, manifest.shards)
        check_rows(path, manifest, rows)
        generation, asked = free_generation(path, manifest), manifest.index.request
        vectors, ids = rows.live_embeddings(), rows.ids[rows.live]
        index = store_searcher(path, generation, asked, vectors, ids, progress=progress)
        manifest = replace(manifest, generation=generation, index=index)
        commit(path, manifest)
    return manifest
