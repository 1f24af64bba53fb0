"""What is known about an index in plain words, and about its images, one row for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64
from numpy import ndarray

from indexing.corpus.originals import Originals
from indexing.records import Failure
from indexing.store.manifest import Manifest
from indexing.store.rows import StoredRows, column, read_failures
from indexing.where import Where
from matvit import COLOURS


class IndexedImages:
    """The images of an index that were not removed, as of one generation.

    `ids`, `paths`, `labels`, `metadata` and `embeddings` all have one row per image in the same
    order; `rows_of` turns ids into row numbers.

    Attributes:
        path: The folder it is stored in.
        embeddings: Unit vectors, one row per image, read from disk on demand.
        metadata: pyarrow table, one row per image: id, path, position, bytes, mtime_ns, sha256,
            width, height, label.
        failures: Images of the corpus that could not be read, and why.
        ids: int64, shape (len,).
    """

    def __init__(self, path: Path, manifest: Manifest, rows: StoredRows) -> None:
        self.path = path
        self._manifest = manifest
        self.metadata = rows.live_metadata()
        self.embeddings = rows.live_embeddings()
        self.failures = read_failures(path, manifest.failure_files)
        self.ids: Int64[ndarray, " images"] = column(self.metadata, "id")
        self._last_where: tuple[Where, Bool[ndarray, " images"]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

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
        names = self._manifest.corpus.class_names
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
        """Describe the index in plain JSON values."""
        return describe_index(self.path, self._manifest, self.failures)

    @cached_property
    def _originals(self) -> Originals:
        corpus = self._manifest.corpus
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
