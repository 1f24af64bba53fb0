"""Whether an index is of the encoder that asks it, and its parts are of the same images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from indexing.records import NO_LABEL
from indexing.search.live import LiveSearcher, Searcher
from indexing.store.files import damaged
from indexing.store.manifest import (
    MANIFEST,
    EncoderRecord,
    Manifest,
    PreprocessRecord,
    SearchRecord,
)
from indexing.store.rows import StoredRows, column
from matvit import Encoder, count_macs

_SAME_SCORE = 1e-6  # of a duplicate, up to float32 rounding


class IndexMismatchError(ValueError):
    """An index was asked with another encoder or preprocessing than it was built with."""


def check_encoder(path: Path, manifest: Manifest, encoder: Encoder) -> None:
    """Refuse an encoder with other weights or other preprocessing than the index was built by.

    Raises:
        IndexMismatchError: If it has; the message names both.
    """
    built = manifest.encoder
    if encoder.fingerprint != built.fingerprint:
        raise IndexMismatchError(
            f"{path} was built by encoder {built.name} ({built.fingerprint}), but this is "
            f"{encoder.name} ({encoder.fingerprint}); build the index again or load that encoder"
        )
    expected, found = manifest.preprocess.fingerprint, encoder.preprocess.fingerprint
    if found != expected:
        raise IndexMismatchError(
            f"{path} was built with preprocessing {expected}, but encoder {encoder.name} uses "
            f"{found}; build the index again or restore the settings"
        )


def check_whole(encoder: Encoder) -> None:
    """Refuse a submodel cut from an encoder: it shares the fingerprint of the whole.

    Raises:
        ValueError: If it is one.
    """
    if not (largest := encoder.submodel(None)).is_full:
        raise ValueError(
            f"an index is embedded at full size, but {encoder.name} is only the submodel "
            f"{largest}; build it with the whole encoder and search it with this one"
        )


def describe(encoder: Encoder) -> tuple[EncoderRecord, PreprocessRecord]:
    """Say in the manifest's words what embeds an index."""
    return (
        EncoderRecord(
            name=encoder.name,
            fingerprint=encoder.fingerprint,
            dim=encoder.config.embed_dim,
            macs=count_macs(encoder.config, encoder.submodel(None)),
        ),
        PreprocessRecord(
            spec=encoder.preprocess.to_dict(), fingerprint=encoder.preprocess.fingerprint
        ),
    )


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
