"""The manifest of an index: what it holds, in which files, made by which encoder.

`manifest.json` is the only commit point. A file that no manifest names does not exist as far as
an index is concerned, so a reader sees the whole of one generation or the whole of another.
Reading is strict: an unknown key, another version or a file outside the index folder is refused.
"""

from __future__ import annotations

import json
import re
import types
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_BYTES = 1 << 28
"""A larger manifest is refused before it is parsed; 100 million images need about 4 MB."""

_Record = TypeVar("_Record")
_Plain = TypeVar("_Plain")

_LARGEST = 1 << 53  # what every JSON reader keeps exact
_FILE_NAME = re.compile(
    r"img_emb/img_emb_\d{6,}\.npy"
    r"|metadata/metadata_\d{6,}\.parquet"
    r"|failures/failures_\d{6,}\.parquet"
    r"|index/knn_g\d+\.faiss"
)


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One data file: its name below the index folder, its rows, and how to recognise it."""

    name: str
    rows: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not _FILE_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not the name of a file of an index")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.name} has a sha256 that is not 64 hex digits")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A run of the corpus list: embeddings and metadata row by row, and what failed."""

    number: int
    embeddings: StoredFile
    metadata: StoredFile
    failures: StoredFile

    def __post_init__(self) -> None:
        if self.embeddings.rows != self.metadata.rows:
            raise ValueError(
                f"shard {self.number} has {self.embeddings.rows} embeddings "
                f"but {self.metadata.rows} rows of metadata"
            )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Images that are indexed, and images that could not be read."""

    images: int
    failures: int


@dataclass(frozen=True, kw_only=True)
class EncoderRecord:
    """The encoder that embedded the images; `macs` are those of its full size."""

    name: str
    fingerprint: str
    dim: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class PreprocessRecord:
    """How images became the input of the encoder."""

    spec: dict[str, Any]
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """Where the images came from: `kind` is `folder`, `parquet` or `tar`, `root` absolute."""

    root: str
    kind: str
    images: int
    class_names: tuple[str, ...] | None

    def __post_init__(self) -> None:
        if self.kind not in ("folder", "parquet", "tar"):
            raise ValueError(f"corpus kind must be 'folder', 'parquet' or 'tar', got {self.kind!r}")


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """The FAISS file, and the kind of index in it."""

    kind: str
    file: StoredFile


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything an index is, except the data itself.

    Raises:
        ValueError: If counts and files disagree, or there is no vector.
    """

    generation: int
    next_id: int
    counts: Counts
    encoder: EncoderRecord
    preprocess: PreprocessRecord
    corpus: CorpusRecord
    shards: tuple[Shard, ...]
    index: SearchRecord
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        images, failures = self.counts.images, self.counts.failures
        if images < 1:
            raise ValueError("the index holds no image; build it again")
        if sum(shard.embeddings.rows for shard in self.shards) != images:
            raise ValueError(f"the shards do not add up to {images} images")
        if sum(shard.failures.rows for shard in self.shards) != failures:
            raise ValueError(f"the shards do not add up to {failures} failures")
        if self.index.file.rows != images:
            raise ValueError(f"{self.index.file.name} has {self.index.file.rows} rows of {images}")
        if self.next_id < images:
            raise ValueError(f"next_id is {self.next_id}, below the {images} ids in use")

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """Every file the index consists of."""
        parts = [(shard.embeddings, shard.metadata, shard.failures) for shard in self.shards]
        return (*(file for shard in parts for file in shard), self.index.file)

    def to_json(self) -> bytes:
        """Return the manifest as indented UTF-8 JSON, version first."""
        values = {"format_version": self.format_version, **asdict(self)}
        return json.dumps(values, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: If it is not JSON, of another version, or not exactly what `to_json`
                writes.
        """
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has {len(text):,} bytes, more than the limit of {MAX_BYTES:,}")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not complete JSON: {error}") from error
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"it has format version {version!r}, this program reads version {FORMAT_VERSION}"
            )
        return _read_record(cls, values, "manifest")


def _read(kind: object, value: object, where: str) -> object:
    """Read a JSON value as the type `kind`, without converting anything."""
    if isinstance(kind, type) and is_dataclass(kind):
        return _read_record(kind, value, where)
    if isinstance(kind, types.UnionType):
        return None if value is None else _read(get_args(kind)[0], value, where)
    if get_origin(kind) is tuple:
        items = _expect(list, value, where)
        return tuple(
            _read(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(items)
        )
    if kind is int and not 0 <= _expect(int, value, where) <= _LARGEST:
        raise ValueError(f"{where} must be within 0..{_LARGEST}, got {value!r:.40}")
    plain = get_origin(kind) or kind
    assert isinstance(plain, type)
    return _expect(plain, value, where)


def _read_record(kind: type[_Record], value: object, where: str) -> _Record:
    """Read a JSON object as the dataclass `kind`; every key must be there and no other."""
    values = _expect(dict, value, where)
    hints = get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"{where} has unknown keys {unknown}; known: {sorted(hints)}")
    if missing := sorted(set(hints) - set(values)):
        raise ValueError(f"{where} lacks the keys {missing}")
    return kind(**{name: _read(hints[name], values[name], f"{where}.{name}") for name in hints})


def _expect(kind: type[_Plain], value: object, where: str) -> _Plain:
    """Return `value` if it is exactly of type `kind` (JSON's true is not an integer)."""
    if type(value) is not kind:
        raise ValueError(f"{where} must be a {kind.__name__}, got {value!r:.100}")
    return value
