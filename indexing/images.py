"""Images that can be searched: what is known about them, one row for each, and what finds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from indexing.checks import Described, check_encoder
from indexing.corpus.originals import Originals
from indexing.records import Failure
from indexing.store.embeddings import Vectors, unit_queries
from indexing.store.manifest import Manifest
from indexing.store.rows import column
from indexing.where import Where
from matvit import COLOURS, Encoder

if TYPE_CHECKING:
    from indexing.search.scoring import Found


class Searcher(Protocol):
    """What finds images: FAISS, or a vector store; scores are exact whatever it is."""

    def search(
        self,
        queries: Float32[ndarray, "queries dim"],
        k: int,
        among: Int64[ndarray, " some"] | None = None,
    ) -> Found:
        """Find the k nearest images of each query, best first, equal scores by smaller id.

        Args:
            queries: Unit vectors.
            k: At least 1; there are no more hits than images that may be found.
            among: Ids of the images that may be found, ascending; None for all.
        """
        ...


class IndexedImages:
    """The images of an index or of a vector store that were not removed, as of one generation.

    `ids`, `paths`, `labels`, `metadata` and `embeddings` all have one row per image in the same
    order; `rows_of` turns ids into row numbers.

    Attributes:
        path: Where they are stored.
        described: By which encoder they were embedded, and where they came from.
        embeddings: Unit vectors, one row per image, read from disk on demand.
        metadata: pyarrow table, one row per image: id, path, position, bytes, mtime_ns, sha256,
            width, height, label.
        failures: Images of the corpus that could not be read, and why.
        ids: int64, shape (len,).
    """

    def __init__(
        self,
        path: Path,
        described: Described,
        metadata: pa.Table,
        embeddings: Vectors,
        searcher: Searcher,
        failures: Sequence[Failure] = (),
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.embeddings = embeddings
        self.failures = failures
        self.described, self._searcher = described, searcher
        self.ids: Int64[ndarray, " images"] = column(self.metadata, "id")
        self._last_where: tuple[Where, Bool[ndarray, " images"]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def search(
        self,
        vectors: Float32[ndarray, "queries dim"],
        k: int,
        among: Bool[ndarray, " images"] | None = None,
    ) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """Find the k most similar images of each query.

        The search is exact, unless what finds them is of an approximate kind: that finds nearly
        all of the nearest, see `info`. Scores are cosines computed in float32, each from its own
        query and image alone, so a result does not depend on the rest of the batch. Equal scores
        are ordered by smaller id.

        Args:
            vectors: Queries; they need not have length one.
            k: Images per query. An index with fewer images returns all it has, so there are
                `min(k, len(index))` columns.
            among: Which rows may be found, as `where` returns it; None for all. Where they are
                few, or far from a query, each is compared: that is exact, whatever the kind.

        Returns:
            Ids and scores, best first.

        Raises:
            ValueError: If `k` is below 1, or the vectors have another dimension, are not finite
                or are zero, or `among` has not one row per image.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries = unit_queries(vectors, self.embeddings.shape[1])
        if among is None:
            return self._searcher.search(queries, k)
        if among.shape != self.ids.shape:
            raise ValueError(f"among must have {len(self):,} rows, got {among.shape}")
        return self._searcher.search(queries, k, self.ids[among])

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

    def path_of(self, row: int) -> str:
        """Name of the image in a row; `paths` makes a list of all names."""
        return str(self.metadata.column("path")[row].as_py())

    @cached_property
    def paths(self) -> list[str]:
        """Name of each image: its path below the corpus root, with forward slashes."""
        paths: list[str] = self.metadata.column("path").to_pylist()
        return paths

    @cached_property
    def labels(self) -> Int64[ndarray, " images"]:
        """Class index of each image, -1 for none."""
        return column(self.metadata, "label")

    @property
    def class_names(self) -> list[str] | None:
        """What the class indices mean; None if the corpus has no classes."""
        names = self.described.corpus.class_names
        return None if names is None else list(names)

    def where(self, where: Where) -> Bool[ndarray, " images"]:
        """Mark the images that a filter lets through, one row per image; the last is remembered.

        Raises:
            ValueError: If the index has no class of a name.
        """
        last = self._last_where
        if last is None or last[0] != where:
            mask = where.mask(self.paths, self.labels, self.class_names, self.mtimes_ns)
            self._last_where = last = where, mask
        return last[1]

    def row_named(self, name: str) -> int | None:
        """Row of the image with a name; None if there is none, the first if there are several."""
        row = pc.index(self.metadata.column("path"), pa.scalar(name)).as_py()
        return None if row < 0 else int(row)

    @property
    def mtimes_ns(self) -> Int64[ndarray, " images"]:
        """When the file of each image was last modified, in nanoseconds, as of its indexing."""
        return column(self.metadata, "mtime_ns")

    def file_of(self, row: int) -> Path:
        """File of the image in a row.

        Raises:
            FileNotFoundError: If it is gone.
            ValueError: If it leads out of the corpus, or the images lie in Parquet or tar files.
        """
        return self._originals.file(self.path_of(row))

    def image_bytes(self, id: int) -> bytes:  # noqa: A002 -- the word of this project
        """Return the original image file.

        Raises:
            KeyError: If the index has no such image.
            FileNotFoundError: If the file is gone.
            ValueError: If it is no longer the image that was indexed.
        """
        return self._originals.read_row(self.metadata, int(self.rows_of(np.array(id))))

    def info(self) -> dict[str, Any]:
        """Describe them in plain JSON values."""
        return {
            "path": str(self.path),
            "images": len(self),
            "encoder": msgspec.to_builtins(self.described.encoder),
            "preprocess": msgspec.to_builtins(self.described.preprocess),
        }

    def check_encoder(self, encoder: Encoder) -> None:
        """Make sure that an encoder speaks the language of these images.

        Raises:
            IndexMismatchError: If its weights or its preprocessing are not those the images were
                embedded with.
        """
        check_encoder(self.path, self.described, encoder)

    @cached_property
    def _originals(self) -> Originals:
        corpus = self.described.corpus
        return Originals(corpus.root, corpus.kind, corpus.selection)


def describe_index(path: Path, manifest: Manifest, failures: Sequence[Failure]) -> dict[str, Any]:
    """Describe an index in plain JSON values.

    `calibration` is the effort of a search, None for the kind Flat, which is exact. `note` says
    why the kind is not the one of `request`, if it is not. `removed` counts stored rows that
    nobody finds any more, `staged` images of an unfinished addition, `forgotten` names that
    additions leave out. `left_out` counts what else the place of the images holds, and `remarks`
    says in words what else there is to know.
    """
    assert manifest.index is not None
    corpus, index = manifest.corpus, manifest.index
    return {
        "path": str(path),
        "format_version": manifest.format_version,
        "generation": manifest.generation,
        "kind": index.kind,
        "factory": index.factory,
        "calibration": msgspec.to_builtins(index.effort),
        "request": msgspec.to_builtins(index.request),
        "note": index.note,
        "images": manifest.counts.images,
        "removed": manifest.counts.removed,
        "staged": sum(shard.metadata.rows for shard in manifest.staged),
        "forgotten": len(manifest.forgotten),
        "failures": len(failures),
        "failures_by_error": dict(Counter(f.error for f in failures).most_common()),
        "classes": None if corpus.class_names is None else len(corpus.class_names),
        "bytes": sum(file.bytes for file in manifest.files),
        "encoder": msgspec.to_builtins(manifest.encoder),
        "preprocess": msgspec.to_builtins(manifest.preprocess),
        "corpus": {"root": corpus.root, "kind": corpus.kind, "images": corpus.images},
        "selection": msgspec.to_builtins(corpus.selection),
        "left_out": msgspec.to_builtins(corpus.left_out),
        "remarks": corpus.left_out.in_words() + _of_old(manifest),
    }


def _of_old(manifest: Manifest) -> list[str]:
    """Say what an index of an earlier version lacks."""
    if manifest.preprocess.colours == COLOURS:
        return []
    return [
        "built when embedded colour profiles were not converted; if there are photographs with one "
        "(P3, Adobe RGB), build it again"
    ]
