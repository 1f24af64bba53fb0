"""Removing images from an index: hidden at once; `compact` gives back the space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64
from msgspec.structs import replace
from numpy import ndarray

from indexing.records import Failure
from indexing.store.folder import (
    commit,
    free_generation,
    free_shard,
    read_finished,
    writer_lock,
)
from indexing.store.manifest import CorpusRecord, Counts
from indexing.store.rows import StoredRows, read_failures, relist, write_tombstones


@dataclass(frozen=True, kw_only=True)
class RemoveReport:
    """What a removal did.

    Attributes:
        removed: Images that are found no more.
        forgotten: Images that could not be read and are no longer listed.
        still_there: Removed images whose file is still in the corpus: `add` brings them back.
        images: In the index now.
        generation: Of the index now.
    """

    removed: int
    forgotten: int
    still_there: int
    images: int
    generation: int


def remove_images(
    path: Path, ids: Iterable[int], paths: Iterable[str], *, forget: bool = False
) -> RemoveReport:
    """Hide images at once; see `ImageIndex.remove`."""
    read_finished(path)  # before a lock is made where no index is
    with writer_lock(path):
        manifest = read_finished(path)
        rows = StoredRows(path, manifest, manifest.shards)
        failures = read_failures(path, manifest.failure_files)
        names = set(paths)
        chosen = _find(path, rows, failures, set(ids), names)
        images = manifest.counts.images - len(chosen)
        if not images:
            raise ValueError(
                f"this would remove all {len(chosen):,} images of {path}; "
                "remove the folder if that is what you want"
            )
        generation = free_generation(path, manifest)
        kept = [failure for failure in failures if failure.path not in names]
        gone = rows.metadata.column("path").take(pa.array(rows.live))
        gone = set(gone.filter(pa.array(np.isin(rows.ids[rows.live], chosen))).to_pylist())
        changed: dict[str, Any] = {}
        if forget:
            changed["forgotten"] = tuple(sorted({*manifest.forgotten, *gone, *names}))
        if len(kept) < len(failures):
            changed |= relist(path, manifest.shards, free_shard(path, manifest), kept)
        if len(chosen):
            removed = np.union1d(rows.removed, chosen)
            changed["tombstones"] = write_tombstones(path, generation, removed)
        counts = Counts(
            images=images,
            failures=len(kept),
            removed=manifest.counts.removed + len(chosen),
        )
        commit(path, replace(manifest, generation=generation, counts=counts, **changed))
    return RemoveReport(
        removed=len(chosen),
        forgotten=len(failures) - len(kept),
        still_there=0 if forget else sum(_is_there(manifest.corpus, name) for name in gone),
        images=images,
        generation=generation,
    )


def _is_there(corpus: CorpusRecord, name: str) -> bool:
    """Whether the file of an image seems to be where it was."""
    return Path(corpus.root, name if corpus.kind == "folder" else "").exists()


def _find(
    path: Path, rows: StoredRows, failures: list[Failure], ids: set[int], names: set[str]
) -> Int64[ndarray, " ids"]:
    """Ids of all images that were named, by id or by path.

    Raises:
        KeyError: If one of them is not in the index.
        ValueError: If none was named.
    """
    if not ids and not names:
        raise ValueError("name the images to remove, by id or by path")
    live = rows.ids[rows.live]
    wanted = np.array(sorted(ids), dtype=np.int64)
    if len(unknown := np.setdiff1d(wanted, live)):
        raise KeyError(f"{path} has no image with id {int(unknown[0])}")
    paths = rows.metadata.column("path").take(pa.array(rows.live))
    asked = pa.array(sorted(names), pa.string())
    found = pc.is_in(asked, value_set=paths).to_pylist()
    failed = {failure.path for failure in failures}
    for name, there in zip(asked.to_pylist(), found, strict=True):
        if not there and name not in failed:
            raise KeyError(f"{path} has no image called {name!r}")
    named = np.array(pc.is_in(paths, value_set=asked).to_pylist(), dtype=bool)
    return np.union1d(wanted, live[named])
