"""Staging: images embedded and committed shard by shard, where nobody searches them yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Float16, Int64, UInt8
from msgspec.structs import replace
from numpy import ndarray

from indexing.corpus.corpus import Corpus, DecodedBatch
from indexing.corpus.decoding import DecodePool, Decoders
from indexing.records import NEW, RECORDS, Failure
from indexing.store.folder import commit, free_shard
from indexing.store.manifest import Manifest
from indexing.store.rows import metadata_table, write_shard
from matvit import Encoder, Precision, embed

if TYPE_CHECKING:
    from indexing.changes import Changes

_NORM_TOLERANCE = 1e-3

Given = Callable[[Int64[ndarray, " images"]], Float16[ndarray, "images dim"]]
"""Returns vectors that are known already."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Reads images and stores them as shards that wait to be merged.

    Attributes:
        encoder: A whole encoder.
        path: The index.
        corpus: The images.
        numbers: Number in the index of each class of the corpus, and of no class as the last.
        changes: Knows which images are stored already; None if none can be.
        precision: In which numbers to compute; see `matvit.embed`.
        given: Instead of computing: what returns the vectors of images.
    """

    encoder: Encoder
    path: Path
    corpus: Corpus
    numbers: Int64[ndarray, " classes"]
    changes: Changes | None
    precision: Precision
    given: Given | None = None

    def store(
        self,
        manifest: Manifest,
        todo: Int64[ndarray, " images"],
        size: int,
        decoders: Decoders,
        advance: Callable[[int], object],
    ) -> Manifest:
        """Embed the images at some places of the corpus and commit them, so many to a shard."""
        with DecodePool(self.encoder.preprocess, decoders) as pool:
            for start in range(0, len(todo), size):
                run = self.corpus.subset(todo[start : start + size])
                manifest = self._store_shard(manifest, run.decode_with(pool), advance)
        return manifest

    def _store_shard(
        self,
        manifest: Manifest,
        batches: Iterable[DecodedBatch],
        advance: Callable[[int], object],
    ) -> Manifest:
        """Embed one run of images and commit it; the next ones are decoded meanwhile."""
        vectors: list[Float16[ndarray, "images dim"]] = []
        columns: list[pa.RecordBatch] = []
        ids: list[int] = []
        failures: list[Failure] = []
        next_id = manifest.next_id
        for batch in batches:
            known, given = self._trace(batch, next_id)
            vectors.append(self._vectors(batch, known))
            columns.append(self._renumbered(batch.columns))
            ids += given
            failures += batch.failures
            next_id = max([next_id, *(number + 1 for number in given)])
            advance(batch.images)
        table = metadata_table(columns, ids)
        manifest = replace(manifest, next_id=next_id)
        return stage_shard(self.path, manifest, np.concatenate(vectors), table, failures)

    def _trace(
        self, batch: DecodedBatch, next_id: int
    ) -> tuple[Int64[ndarray, " images"], list[int]]:
        """Stored row of each image, `NEW` if there is none, and the id that it gets."""
        if self.changes is None:
            return np.full(len(batch), NEW), list(range(next_id, next_id + len(batch)))
        return self.changes.trace(batch.columns, next_id)

    def _vectors(
        self, batch: DecodedBatch, known: Int64[ndarray, " images"]
    ) -> Float16[ndarray, "images dim"]:
        """Copy the embeddings that are stored already, compute the others."""
        if self.given is not None:
            return self.given(np.from_dlpack(batch.columns["position"]))
        new, names = known == NEW, batch.columns["path"]
        if new.all():
            return embed_whole(self.encoder, batch.pixels, names, self.precision)
        assert self.changes is not None
        vectors = np.empty((len(batch), self.encoder.config.embed_dim), dtype=np.float16)
        vectors[new] = embed_whole(
            self.encoder, batch.pixels[new], names.filter(pa.array(new)), self.precision
        )
        vectors[~new] = self.changes.embeddings.raw(known[~new])
        return vectors

    def _renumbered(self, columns: pa.RecordBatch) -> pa.RecordBatch:
        """Number the classes as the index does."""
        place = RECORDS.get_field_index("label")
        labels = pa.array(self.numbers[columns["label"].to_numpy()])
        return columns.set_column(place, RECORDS.field(place), labels)


def stage_shard(
    path: Path,
    manifest: Manifest,
    vectors: Float16[ndarray, "images dim"],
    table: pa.Table,
    failures: Sequence[Failure],
) -> Manifest:
    """Write one shard behind those that are staged, commit it, and return the new state."""
    number = free_shard(path, manifest)
    shard = write_shard(path, number, vectors, table, failures)
    staged = (*manifest.staged, shard)
    manifest = replace(manifest, next_shard=number + 1, staged=staged)
    commit(path, manifest)
    return manifest


def embed_whole(
    encoder: Encoder,
    pixels: UInt8[ndarray, "images height width 3"],
    names: pa.Array,
    precision: Precision = "auto",
) -> Float16[ndarray, "images dim"]:
    """Embed images at full size and make sure that every row can be searched for.

    Args:
        encoder: A whole encoder.
        pixels: Decoded images.
        names: What to call each.
        precision: In which numbers to compute; see `matvit.embed`.

    Raises:
        ValueError: If the encoder did not return one unit vector per image.
    """
    expected = (len(pixels), encoder.config.embed_dim)
    if not len(pixels):
        return np.empty(expected, dtype=np.float16)
    vectors = embed(encoder, pixels, batch_size=len(pixels), precision=precision)
    if vectors.shape != expected:
        raise ValueError(f"encoder {encoder.name} returned {vectors.shape}, wanted {expected}")
    norms = np.linalg.norm(vectors, axis=1)
    for row in np.flatnonzero(~(np.abs(norms - 1) < _NORM_TOLERANCE)):  # NaN is caught too
        raise ValueError(
            f"encoder {encoder.name} has no direction for {names[row]}: its "
            f"embedding has length {norms[row]}; check the weights of the encoder"
        )
    return vectors.astype(np.float16)
