"""Telling an index where its images are now: nothing is embedded again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace

from indexing.corpus.corpus import Corpus
from indexing.corpus.originals import Originals, complaints
from indexing.store.folder import commit, free_generation, read_finished, writer_lock
from indexing.store.rows import StoredRows

_COMPARED = 1_000


@dataclass(frozen=True, kw_only=True)
class RelocateReport:
    """What a relocation found.

    Attributes:
        root: Where the images are now.
        compared: Images that were read there; their content is the one that was indexed.
        images: In the index; each of them is there by its name.
        generation: Of the index now.
    """

    root: str
    compared: int
    images: int
    generation: int


def relocate_index(
    path: Path, place: str | Path, *, rehash: bool = False, progress: bool = False
) -> RelocateReport:
    """Name another place for the images of an index; see `ImageIndex.relocate`."""
    read_finished(path)  # before a lock is made where no index is
    with writer_lock(path):
        before = read_finished(path)
        kind = before.corpus.kind
        corpus = Corpus.as_listed(place, kind, before.corpus.selection)
        root, images = str(corpus.root), StoredRows(path, before, before.shards).live_metadata()
        _check_names(path, corpus, images)
        chosen = np.arange(len(images))
        if not rehash:
            chosen = np.unique(np.linspace(0, len(images) - 1, _COMPARED).astype(np.int64))
        originals = Originals(root, kind, before.corpus.selection)
        for _, error in complaints(
            lambda row: originals.read_row(images, row),
            chosen.tolist(), doing="comparing", progress=progress,
        ):  # fmt: skip
            raise ValueError(f"{path} stays as it is, these are not its images: {error}") from error
        generation = free_generation(path, before)
        adding = before.adding and replace(before.adding, root=root)
        now = replace(before.corpus, root=root)
        commit(path, replace(before, generation=generation, corpus=now, adding=adding))
    return RelocateReport(
        root=root, compared=len(chosen), images=len(images), generation=generation
    )


def _check_names(path: Path, corpus: Corpus, images: pa.Table) -> None:
    """Make sure that every image of an index is in a corpus, by its name."""
    there = corpus.names
    names = images.column("path").cast(there.type)
    missing = names.filter(pc.invert(pc.is_in(names, value_set=there)))
    if len(missing):
        raise ValueError(
            f"{path} stays as it is: {len(missing):,} of its {len(names):,} images are not in "
            f"{corpus.root}, such as {missing[0].as_py()}; name the place that holds all of them "
            "under the names they had"
        )
