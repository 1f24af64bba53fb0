"""Merging what was staged into what is searched: one commit, all of it or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64
from msgspec.structs import replace
from numpy import ndarray

from indexing.records import Failure, is_below
from indexing.search.making import store_searcher
from indexing.search.request import KindRequest
from indexing.store.folder import commit, free_generation, free_shard, remove_index
from indexing.store.manifest import Counts, Manifest, Shard
from indexing.store.rows import (
    StoredRows,
    live_rows,
    read_failures,
    relist,
    write_tombstones,
)


@dataclass(frozen=True, kw_only=True)
class AddReport:
    """What an addition changed.

    Attributes:
        added: Images that the index did not have, under no name or under one that still exists.
        changed: Images whose content is another one now; they have new ids.
        renamed: Images that kept their id under a new name.
        removed: Images that are found no more: their file is gone or is no image any more.
        unchanged: Images that are as they were.
        failed: Images that could not be read this time; see `ImageIndex.failures`. Those that are
            only out of reach, for an error of the disk or a missing permission, are kept.
        images: In the index now.
        generation: Of the index now.
    """

    added: int
    changed: int
    renamed: int
    removed: int
    unchanged: int
    failed: int
    images: int
    generation: int


def merge_build(
    path: Path, manifest: Manifest, request: KindRequest, *, device: str, progress: bool
) -> None:
    """Search what a build has staged; its shards keep their lists of what could not be read.

    Args:
        path: The index.
        manifest: With all images staged.
        request: What kind of search structure is wanted.
        device: Where to train and fill it.
        progress: Show a progress bar on stderr.

    Raises:
        ValueError: If not one image could be read; nothing of the index is left then.
    """
    rows = StoredRows(path, manifest, manifest.staged)
    if not len(rows.ids):
        _, first = staged_failures(path, manifest)[0]
        remove_index(path)
        raise ValueError(
            f"none of the {manifest.corpus.images:,} images in {manifest.corpus.root} could be "
            f"read; the first is {first.path}: {first.message}"
        )
    after = _merged(
        path, manifest, manifest.staged, rows, rows.live, None,
        request=request, device=device, progress=progress,
    )  # fmt: skip
    commit(path, after)


def merge_addition(
    path: Path,
    before: Manifest,
    manifest: Manifest,
    wanted: pa.Array | None,
    unlisted: Sequence[str] = (),
) -> AddReport:
    """Search what an addition has staged; a later row of a name hides an earlier one.

    What is out of reach stays as it is: only a file that was read and is no image hides a row.

    Args:
        path: The index.
        before: What is searched until now.
        manifest: The same with all that is to be merged in `staged` and `adding`.
        wanted: Names of the images to keep; None for all.
        unlisted: Folders of which nobody knows what is in them; that is kept, too.

    Raises:
        ValueError: If no image would be left.
    """
    assert before.index is not None
    rows = StoredRows(path, manifest, (*manifest.shards, *manifest.staged))
    staged = staged_failures(path, manifest)
    dead = _superseded(rows, [(place, each) for place, each in staged if each.was_read])
    if wanted is not None:
        paths = _paths(rows, rows.live)
        dead |= ~(_is_in(paths, wanted) | is_below(paths, unlisted))
    live = rows.live[~dead]
    if not len(live):
        raise ValueError(f"no image of {path} would be left; remove the folder if that is wanted")
    old = read_failures(path, manifest.failure_files)
    failed = _last_words(rows, live, staged)
    kept = [failure for failure in old if failure.path not in failed and not failure.is_folder]
    names = pa.array([failure.path for failure in kept], pa.large_string())
    gone = _is_in(names, _paths(rows, live))
    if wanted is not None:
        gone |= ~(_is_in(names, wanted) | is_below(names, unlisted))
    failures = [failure for failure, out in zip(kept, gone, strict=True) if not out]
    failures += failed.values()
    after = before
    if manifest.staged or dead.any() or failures != old or manifest.adding != before.corpus:
        filled = (shard for shard in manifest.staged if shard.metadata.rows)
        shards = (*manifest.shards, *(replace(shard, failures=None) for shard in filled))
        told = None if failures == old else failures
        asked = before.index.request
        after = _merged(path, manifest, shards, rows, live, told, request=asked)
        commit(path, after)
    return _report(rows, _searched(rows, before), live, after, len(failed))


def staged_failures(path: Path, manifest: Manifest) -> list[tuple[int, Failure]]:
    """What could not be read in staged shards, with the shard's place among all, oldest first."""
    return [
        (place, failure)
        for place, shard in enumerate(manifest.staged, start=len(manifest.shards))
        for failure in read_failures(path, [shard.failures] if shard.failures else [])
    ]


def _superseded(
    rows: StoredRows, failures: Sequence[tuple[int, Failure]]
) -> Bool[ndarray, " live"]:
    """Which live rows have a name that a later row or a later failure has too."""
    order = np.argsort(rows.live)
    live = rows.live[order]
    paths = _paths(rows, live).combine_chunks()
    codes = paths.dictionary_encode().indices.to_numpy()
    latest = np.full(codes.max(initial=-1) + 1, -1, dtype=np.int64)
    np.maximum.at(latest, codes, live)
    superseded = latest[codes] != live
    shards = rows.shard_of_rows()[live]
    failed = {failure.path: place for place, failure in failures}  # the last one counts
    for place in np.flatnonzero(_is_in(paths, pa.array(list(failed), paths.type))):
        superseded[place] |= shards[place] < failed[paths[place].as_py()]
    answer = np.empty(len(live), dtype=bool)
    answer[order] = superseded
    return answer


def _last_words(
    rows: StoredRows, live: Int64[ndarray, " live"], staged: Sequence[tuple[int, Failure]]
) -> dict[str, Failure]:
    """The last failure of each name, unless its image could be read after that."""
    last = {failure.path: (place, failure) for place, failure in staged}
    images = _paths(rows, live).combine_chunks()
    found = pc.index_in(pa.array(list(last), images.type), value_set=images).fill_null(-1)
    shards = np.append(rows.shard_of_rows()[live], -1)[np.asarray(found, dtype=np.int64)]
    return {
        name: failure
        for (name, (place, failure)), shard in zip(last.items(), shards, strict=True)
        if shard < place
    }


def _merged(
    path: Path,
    manifest: Manifest,
    shards: Sequence[Shard],
    rows: StoredRows,
    live: Int64[ndarray, " live"],
    failures: Sequence[Failure] | None,
    *,
    request: KindRequest,
    device: str = "cpu",
    progress: bool = False,
) -> Manifest:
    """Write the files of the new state and describe it.

    Args:
        path: The index.
        manifest: With all that is to be merged in `staged`.
        shards: What is searched from now on.
        rows: Of these shards.
        live: Rows that are to be found.
        failures: Images that could not be read; None if the lists of the shards are right.
        request: What kind of search structure is wanted.
        device: Where to train and fill it.
        progress: Show a progress bar on stderr.
    """
    generation = free_generation(path, manifest)
    changed: dict[str, Any] = {"shards": tuple(shards)}
    if failures is not None:
        changed |= relist(path, shards, free_shard(path, manifest), failures)
    dead = np.setdiff1d(rows.ids[rows.live], rows.ids[live])
    if len(dead):
        removed = np.union1d(rows.removed, dead)
        changed["tombstones"] = write_tombstones(path, generation, removed)
    if not np.isin(rows.ids[live], rows.ids[_searched(rows, manifest)]).all():
        changed["index"] = store_searcher(
            path, generation, request, rows.embeddings.take(live), rows.ids[live],
            device=device, progress=progress,
        )  # fmt: skip
    lists = [shard.failures for shard in changed["shards"]]
    lists.append(changed.get("failures", manifest.failures))
    return replace(
        manifest,
        generation=generation,
        counts=Counts(
            images=len(live),
            failures=sum(file.rows for file in lists if file is not None),
            removed=len(rows.ids) - len(live),
        ),
        corpus=manifest.adding or manifest.corpus,
        staged=(),
        plan=None,
        adding=None,
        **changed,
    )


def _searched(rows: StoredRows, manifest: Manifest) -> Int64[ndarray, " live"]:
    """Rows that are searched as long as nothing is merged."""
    count = sum(shard.metadata.rows for shard in manifest.shards)
    return live_rows(rows.ids[:count], rows.removed)


def _report(
    rows: StoredRows,
    searched: Int64[ndarray, " live"],
    live: Int64[ndarray, " live"],
    after: Manifest,
    failed: int,
) -> AddReport:
    """Compare what was searched with what is searched now."""
    old, new = rows.ids[searched], rows.ids[live]
    lost = _paths(rows, searched[~np.isin(old, new)])
    kept = np.isin(new, old)
    before = _paths(rows, searched[np.searchsorted(old, new[kept])])
    changed = int(_is_in(_paths(rows, live[~kept]), lost).sum())
    renamed = int((before.to_numpy() != _paths(rows, live[kept]).to_numpy()).sum())
    return AddReport(
        added=int((~kept).sum()) - changed,
        changed=changed,
        renamed=renamed,
        removed=len(lost) - changed,
        unchanged=int(kept.sum()) - renamed,
        failed=failed,
        images=len(live),
        generation=after.generation,
    )


def _paths(rows: StoredRows, chosen: Int64[ndarray, " rows"]) -> pa.ChunkedArray:
    return rows.metadata.column("path").cast(pa.large_string()).take(pa.array(chosen))


def _is_in(
    names: pa.Array | pa.ChunkedArray, others: pa.Array | pa.ChunkedArray
) -> Bool[ndarray, " names"]:
    return np.array(pc.is_in(names, value_set=others).to_pylist(), dtype=bool)
