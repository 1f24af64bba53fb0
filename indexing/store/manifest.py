"""The manifest of an index: what it holds, in which files, made by which encoder.

`manifest.json` is the only commit point. A file that no manifest names does not exist as far as
an index is concerned, so a reader sees the whole of one generation or the whole of another.
Reading is strict: an unknown key, another version or a file outside the index folder is refused.

An unfinished build or addition keeps what it has stored so far in `staged`: nobody searches it,
nobody loses it, and the next run goes on from there. Version 1, which knew neither updates nor
resumption, version 2, which knew only the kind Flat, and version 3, whose kinds were chosen for a
CPU, are read as version 4.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from indexing.search.request import EXACT, Calibration, KindRequest
from indexing.store.files import StoredFile
from indexing.strict_json import read_record
from indexing.upgrade import FORMAT_VERSION, upgrade

MANIFEST = "manifest.json"
MAX_BYTES = 1 << 28
"""A larger manifest is refused before it is parsed; 100 million images need about 4 MB."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A run of images: embeddings and metadata row by row, and what failed among them.

    Attributes:
        number: Of the shard; never given twice, so that no file name means two things.
        failures: What could not be read; None once an update has moved it to the manifest's list.
    """

    number: int
    embeddings: StoredFile
    metadata: StoredFile
    failures: StoredFile | None

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """Its files."""
        return (self.embeddings, self.metadata, *([self.failures] if self.failures else []))

    def __post_init__(self) -> None:
        if self.embeddings.rows != self.metadata.rows:
            raise ValueError(
                f"shard {self.number} has {self.embeddings.rows} embeddings "
                f"but {self.metadata.rows} rows of metadata"
            )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Images that are indexed, images that could not be read, stored rows nobody finds any more."""

    images: int
    failures: int
    removed: int


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
    """The FAISS file, the kind of index in it, and how to search it.

    Attributes:
        kind: Name of the kind.
        factory: FAISS factory string it was made by.
        calibration: How hard to search; None for the kind Flat.
        request: What was asked for, to be asked for again when the index changes.
        note: Why it is another kind than was asked for; None if it is not.
        file: What FAISS wrote.
    """

    kind: str
    factory: str
    calibration: Calibration | None
    request: KindRequest
    note: str | None
    file: StoredFile

    def __post_init__(self) -> None:
        if self.calibration is None and self.factory != EXACT:
            raise ValueError(f"index.calibration is missing, which kind {self.kind!r} needs")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an unfinished build set out to do.

    Attributes:
        list_sha256: Of the list of images; see `list_fingerprint`.
        shard_size: Images of the list per shard.
    """

    list_sha256: str
    shard_size: int

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"plan.shard_size must be at least 1, got {self.shard_size}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything an index is, except the data itself.

    Attributes:
        generation: Counts the commits that changed what a search finds; 0 until a build is done.
        next_id: Id of the next new image; no id is ever given twice.
        next_shard: Number of the next shard or list of failures.
        shards: What is searched, less what is removed. Of two rows with one id the later counts.
        staged: Shards of an unfinished build or addition, which are not searched yet.
        plan: What an unfinished build set out to do; None once it is done.
        adding: The corpus as an unfinished addition sees it, whose classes `staged` is labelled by.
        tombstones: Ids that were removed, while rows of them are still stored.
        failures: Images that could not be read, besides those listed by the shards.
        index: What is searched; None while the build is unfinished.

    Raises:
        ValueError: If counts and files disagree, or there is no vector.
    """

    generation: int
    next_id: int
    next_shard: int
    counts: Counts
    encoder: EncoderRecord
    preprocess: PreprocessRecord
    corpus: CorpusRecord
    shards: tuple[Shard, ...]
    staged: tuple[Shard, ...]
    plan: Plan | None
    adding: CorpusRecord | None
    tombstones: StoredFile | None
    failures: StoredFile | None
    index: SearchRecord | None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if (self.plan is None) != (self.index is not None):
            raise ValueError("an index has either a search file or a plan to finish")
        numbers = [shard.number for shard in (*self.shards, *self.staged)]
        if len(set(numbers)) < len(numbers) or max(numbers, default=-1) >= self.next_shard:
            raise ValueError(f"its shards are not numbered apart below {self.next_shard}")
        self._check_counts()

    def _check_counts(self) -> None:
        images, removed = self.counts.images, self.counts.removed
        if self.index is not None and images < 1:
            raise ValueError("the index holds no image; build it again")
        if sum(shard.embeddings.rows for shard in self.shards) != images + removed:
            more = f" and {removed} removed ones" if removed else ""
            raise ValueError(f"the shards do not add up to {images} images{more}")
        if sum(file.rows for file in self.failure_files) != self.counts.failures:
            raise ValueError(f"the shards do not add up to {self.counts.failures} failures")
        if self.index is not None and not images <= self.index.file.rows <= images + removed:
            raise ValueError(f"{self.index.file.name} has {self.index.file.rows} rows of {images}")
        if self.next_id < images:
            raise ValueError(f"next_id is {self.next_id}, below the {images} ids in use")

    @property
    def failure_files(self) -> tuple[StoredFile, ...]:
        """Lists of the images that could not be read; staged ones are not among them."""
        lists = (*(shard.failures for shard in self.shards), self.failures)
        return tuple(file for file in lists if file is not None)

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """Every file the index consists of, staged ones included."""
        search = None if self.index is None else self.index.file
        more = (file for file in (self.tombstones, self.failures, search) if file is not None)
        shards = (*self.shards, *self.staged)
        return (*(file for shard in shards for file in shard.files), *more)

    @property
    def searched_files(self) -> tuple[StoredFile, ...]:
        """The files that a reader opens."""
        staged = {file.name for shard in self.staged for file in shard.files}
        return tuple(file for file in self.files if file.name not in staged)

    def to_json(self) -> bytes:
        """Return the manifest as indented UTF-8 JSON, version first and the hash of it all last."""
        return sealed({"format_version": self.format_version, **asdict(self)})

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: If it is not JSON, of another version, damaged, or not exactly what
                `to_json` writes.
        """
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has {len(text):,} bytes, more than the limit of {MAX_BYTES:,}")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not complete JSON: {error}") from error
        version = values.get("format_version") if isinstance(values, dict) else None
        if version not in range(1, FORMAT_VERSION + 1) or type(version) is not int:
            raise ValueError(
                f"it has format version {version!r}, this program reads versions 1 to "
                f"{FORMAT_VERSION}"
            )
        # Those of version 1 have no hash of their own.
        if version > 1 and values.pop("sha256", None) != _digest(values):
            raise ValueError("it is damaged: its content is not what was written")
        upgrade(values)
        return read_record(cls, values, "manifest")


def sealed(values: dict[str, Any]) -> bytes:
    """Return the JSON of a manifest with the hash of its content, which reading checks."""
    return json.dumps({**values, "sha256": _digest(values)}, indent=2).encode() + b"\n"


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
