"""Whether the parts of an index speak of the same images: what no hash of one file can tell."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from indexing.manifest import MANIFEST, Manifest, SearchRecord
from indexing.searcher import LiveSearcher, Searcher
from indexing.storage import damaged
from indexing.stored import StoredRows, column
from matvit import NO_LABEL

_SAME_SCORE = 1e-6  # of a duplicate, up to float32 rounding


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


def check_search(
    path: Path, manifest: Manifest, rows: StoredRows, searcher: Searcher, samples: int
) -> None:
    """Make sure that all live images can be found, and that a sample of them find themselves.

    Each must come first, or a duplicate of it. Of an approximate kind so many may be missed as its
    calibration leads to expect; one made of other vectors misses nearly all. Reading the sample
    also checks its norms.

    Raises:
        ValueError: If they cannot.
    """
    assert manifest.index is not None
    file = path / manifest.index.file.name
    ids = rows.ids[rows.live]
    if (np.diff(searcher.ids) <= 0).any() or not np.isin(ids, searcher.ids).all():
        raise damaged(file, "its ids are not those of the metadata")
    chosen = np.unique(np.linspace(0, len(ids) - 1, samples).astype(np.int64))
    embeddings = rows.live_embeddings()
    vectors = embeddings[chosen]
    found, _ = LiveSearcher(searcher, ids).search(vectors, k=1)
    nearest = np.minimum(np.searchsorted(ids, found[:, 0]), len(ids) - 1)
    same = (vectors * embeddings[nearest]).sum(axis=1) > 1 - _SAME_SCORE
    lost = (ids[nearest] != found[:, 0]) | ~same
    if lost.sum() > _expected_misses(manifest.index, len(chosen)):
        name = rows.metadata.column("path")[int(rows.live[chosen[lost][0]])].as_py()
        raise damaged(file, f"image {name} does not find itself")


def _expected_misses(record: SearchRecord, samples: int) -> int:
    """Most of a sample that an approximate search may miss by chance; 0 of an exact one.

    An image is closer to itself than its tenth neighbour is, so it is found more often than the
    calibration says: what that leads to expect and three standard errors are never too few.
    """
    if record.calibration is None or not record.calibration.queries:
        return 0
    missed = 1 - record.calibration.recall
    return math.ceil(samples * missed + 3 * math.sqrt(samples * missed * (1 - missed)))
