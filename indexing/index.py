"""`ImageIndex`: images embedded once, stored on disk, searched by vector."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64
from numpy import ndarray

from indexing.build import build_index
from indexing.corpus import Corpus, Failure
from indexing.embeddings import Embeddings
from indexing.flat import KIND, FlatIndex, unit_queries
from indexing.manifest import MANIFEST, Manifest
from indexing.originals import Originals
from indexing.shards import FAILURES, METADATA, read_tables
from indexing.storage import check_size, damaged, read_manifest
from matvit.data import NO_LABEL
from matvit.embed import Encoder

_SAMPLED_ROWS = 64
_SAME_SCORE = 1e-6  # a duplicate scores like the image itself, up to float32 rounding


class IndexMismatchError(ValueError):
    """An index was asked with another encoder or preprocessing than it was built with."""


class ImageIndex:
    """Images embedded at full size, with exact cosine search.

    Every image has an id, a number that never changes while the index lives. `ids`, `paths`,
    `labels`, `metadata` and `embeddings` all have one row per image in the same order; `rows_of`
    turns ids into row numbers.

    Make one with `build`, or open one with `open`.

    Attributes:
        path: The folder it is stored in.
        embeddings: Unit vectors, one row per image, read from disk on demand.
        metadata: pyarrow table, one row per image: id, path, position, bytes, mtime_ns, sha256,
            width, height, label.
        failures: Images of the corpus that could not be read, and why.
        ids: int64, shape (len,).
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._manifest = manifest
        shards, dim = manifest.shards, manifest.encoder.dim
        self.embeddings = Embeddings(path, [shard.embeddings for shard in shards], dim)
        self.metadata = read_tables(path, [shard.metadata for shard in shards], METADATA)
        failures = read_tables(path, [shard.failures for shard in shards], FAILURES)
        self.failures = [Failure(**row) for row in failures.to_pylist()]
        self.ids: Int64[ndarray, " images"] = _column(self.metadata, "id")
        self._searcher = FlatIndex.read(path, manifest.index.file, dim)

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        corpus: Corpus,
        path: str | Path,
        *,
        batch_size: int = 256,
        progress: bool = False,
    ) -> ImageIndex:
        """Embed all images of a corpus at full size and store them as a new index.

        An image that cannot be read is left out and listed in `failures`. A build that fails
        leaves nothing behind; one that is killed leaves no index, and its folder can be built
        into again.

        Args:
            encoder: A whole encoder; it runs on the device where it lives.
            corpus: The images.
            path: Folder of the index; it must not exist or be empty.
            batch_size: Images decoded and embedded at a time.
            progress: Show a progress bar on stderr.

        Raises:
            FileExistsError: If `path` holds anything.
            BlockingIOError: If another process is building there.
            ValueError: If no image could be read, or the encoder is not whole or not finite.
        """
        build_index(encoder, corpus, Path(path), batch_size=batch_size, progress=progress)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path, encoder: Encoder | None = None) -> ImageIndex:
        """Open an index and make sure that it is whole and can be searched.

        Checked are the size of every file, the hash of every file that is read whole (all but
        the embeddings), counts and ids, and that a sample of the images find themselves.

        Args:
            path: Folder of the index.
            encoder: If given, what it will be asked with; see `check_encoder`.

        Raises:
            FileNotFoundError: If there is no index at `path`.
            IndexMismatchError: If it was built by another encoder or preprocessing.
            ValueError: If it is damaged or of another version; the message names the file.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if manifest.index.kind != KIND:
            raise ValueError(
                f"{path} is an index of kind {manifest.index.kind!r}; this program reads {KIND!r}"
            )
        if encoder is not None:
            _check_encoder(path, manifest, encoder)
        for file in manifest.files:
            check_size(path, file)
        index = cls(path, manifest)
        index._check_rows()
        index._check_images_find_themselves()
        return index

    def __len__(self) -> int:
        return len(self.ids)

    def search(
        self, vectors: Float32[ndarray, "queries dim"], k: int
    ) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """Find the k most similar images of each query.

        The search is exact. Scores are cosines computed in float32, each from its own query and
        image alone, so a result does not depend on the rest of the batch. Equal scores are
        ordered by smaller id.

        Args:
            vectors: Queries; they need not have length one.
            k: Images per query. An index with fewer images returns all it has, so there are
                `min(k, len(index))` columns.

        Returns:
            Ids and scores, best first.

        Raises:
            ValueError: If `k` is below 1, or the vectors have another dimension, are not finite
                or are zero.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries = unit_queries(vectors, self.embeddings.shape[1])
        return self._searcher.search(queries, min(k, len(self)))

    def check_encoder(self, encoder: Encoder) -> None:
        """Make sure that an encoder speaks the language of this index.

        Raises:
            IndexMismatchError: If its weights or its preprocessing are not those the index was
                built with.
        """
        _check_encoder(self.path, self._manifest, encoder)

    def rows_of(self, ids: Int64[ndarray, "..."]) -> Int64[ndarray, "..."]:
        """Row numbers of images in `metadata`, `labels`, `paths` and `embeddings`.

        Raises:
            KeyError: If the index has no image with such an id.
        """
        ids = np.asarray(ids)
        rows = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        if (unknown := ids[self.ids[rows] != ids]).size:
            raise KeyError(f"{self.path} has no image with id {int(unknown.flat[0])}")
        return rows

    @cached_property
    def paths(self) -> list[str]:
        """Name of each image: its path below the corpus root, with forward slashes."""
        paths: list[str] = self.metadata.column("path").to_pylist()
        return paths

    @cached_property
    def labels(self) -> Int64[ndarray, " images"]:
        """Class index of each image, -1 for none."""
        return _column(self.metadata, "label")

    @property
    def class_names(self) -> list[str] | None:
        """What the class indices mean; None if the corpus has no classes."""
        names = self._manifest.corpus.class_names
        return None if names is None else list(names)

    def image_bytes(self, id: int) -> bytes:  # noqa: A002 -- the word of this project
        """Return the original image file.

        Raises:
            KeyError: If the index has no such image.
            FileNotFoundError: If the file is gone.
            ValueError: If it is no longer the image that was indexed.
        """
        row = int(self.rows_of(np.array(id)))
        path, position, sha256 = (
            self.metadata.column(name)[row].as_py() for name in ("path", "position", "sha256")
        )
        return self._originals.read(path, position, sha256)

    def info(self) -> dict[str, Any]:
        """Describe the index in plain JSON values."""
        manifest = self._manifest
        failed = Counter(failure.error for failure in self.failures)
        return {
            "path": str(self.path),
            "format_version": manifest.format_version,
            "generation": manifest.generation,
            "kind": manifest.index.kind,
            "images": len(self),
            "failures": len(self.failures),
            "failures_by_error": dict(failed.most_common()),
            "classes": None if self.class_names is None else len(self.class_names),
            "bytes": sum(file.bytes for file in manifest.files),
            "encoder": vars(manifest.encoder).copy(),
            "preprocess": vars(manifest.preprocess).copy(),
            "corpus": {
                "root": manifest.corpus.root,
                "kind": manifest.corpus.kind,
                "images": manifest.corpus.images,
            },
        }

    @cached_property
    def _originals(self) -> Originals:
        return Originals(self._manifest.corpus)

    def _check_rows(self) -> None:
        """Search structure, metadata and class names must speak of the same images."""
        if (np.diff(self.ids) <= 0).any() or not np.array_equal(self._searcher.ids, self.ids):
            file = self._manifest.index.file.name
            raise damaged(self.path / file, "its ids are not those of the metadata")
        classes = len(self._manifest.corpus.class_names or ())
        if self.labels.min() < NO_LABEL or self.labels.max() >= classes:
            raise damaged(self.path / MANIFEST, f"labels are outside its {classes} class names")

    def _check_images_find_themselves(self) -> None:
        """Search for a sample of the stored vectors: each must come first, or a duplicate of it.

        Reading the sample also checks its norms.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, _SAMPLED_ROWS).astype(np.int64))
        ids, scores = self.search(self.embeddings[rows], k=1)
        lost = (ids[:, 0] != self.ids[rows]) & ~(np.abs(scores[:, 0] - 1) < _SAME_SCORE)
        if lost.any():
            raise damaged(
                self.path / self._manifest.index.file.name,
                f"image {self.paths[int(rows[lost][0])]} does not find itself",
            )


def _check_encoder(path: Path, manifest: Manifest, encoder: Encoder) -> None:
    """Refuse an encoder with other weights or other preprocessing than the index was built by."""
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


def _column(table: pa.Table, name: str) -> Int64[ndarray, " images"]:
    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)
