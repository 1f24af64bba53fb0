"""The manifest of an index: what it holds, in which files, made by which encoder.

`manifest.json` is the only commit point. A file that no manifest names does not exist as far as
an index is concerned, so a reader sees the whole of one generation or the whole of another.
Reading is strict: an unknown key, another version or a file outside the index folder is refused.

An unfinished build or addition keeps what it has stored so far in `staged`: nobody searches it,
nobody loses it, and the next run goes on from there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from indexing.corpus.selection import LeftOut, Selection
from indexing.search.request import EXACT, Effort, KindRequest
from indexing.store.files import LARGEST, Count, StoredFile
from matvit import COLOURS, SEAL, is_whole, parse_json, sealed

MANIFEST = "manifest.json"
FORMAT_VERSION = 4
MAX_BYTES = 1 << 26
"""A larger manifest is neither written nor read; 100 million images need about 4 MB."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON object of exactly these keys, each of its type and within its bounds."""


class Shard(_Part, frozen=True):
    """A run of images: embeddings and metadata row by row, and what failed among them.

    Attributes:
        number: Of the shard; never given twice, so that no file name means two things.
        failures: What could not be read; None once an update has moved it to the manifest's list.
    """

    number: Count
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


class Counts(_Part, frozen=True):
    """Images that are indexed, images that could not be read, stored rows nobody finds any more."""

    images: Count
    failures: Count
    removed: Count


class EncoderRecord(_Part, frozen=True):
    """The encoder that embedded the images; `macs` are those of its full size."""

    name: str
    fingerprint: str
    dim: Count
    macs: Count


class PreprocessRecord(_Part, frozen=True):
    """How images became the input of the encoder.

    Attributes:
        spec: Its settings.
        fingerprint: What must be the same for a query.
        colours: How colours were read when the index was built; see `matvit.COLOURS`.
    """

    spec: dict[str, Any]
    fingerprint: str
    colours: Annotated[int, msgspec.Meta(ge=1, le=COLOURS)] = 1


class CorpusRecord(_Part, frozen=True, omit_defaults=True):
    """Where the images came from.

    Attributes:
        root: The place, as an absolute path.
        kind: What was found there.
        images: How many were listed.
        class_names: What their class indices mean; None without classes.
        selection: What was to be taken.
        left_out: What else there was.
    """

    root: str
    kind: Literal["folder", "parquet", "tar"]
    images: Count
    class_names: tuple[str, ...] | None
    selection: Selection = Selection(rules=1)
    left_out: LeftOut = LeftOut()


class SearchRecord(_Part, frozen=True):
    """The FAISS file, the kind of index in it, and how to search it.

    Attributes:
        kind: Name of the kind.
        factory: FAISS factory string it was made by.
        effort: How hard to search, `calibration` on disk; None for the kind Flat.
        request: What was asked for, to be asked for again when the index changes.
        note: Why it is another kind than was asked for; None if it is not.
        file: What FAISS wrote.
    """

    kind: str
    factory: str
    effort: Effort | None = msgspec.field(name="calibration")
    request: KindRequest
    note: str | None
    file: StoredFile

    def __post_init__(self) -> None:
        if self.effort is None and self.factory != EXACT:
            raise ValueError(f"index.calibration is missing, which kind {self.kind!r} needs")


class Share(_Part, frozen=True):
    """One of the equal shares that several workers make of a build: `--shard number/of`.

    A share is a run of whole shards, so it depends on the list of images alone.

    Attributes:
        number: Of the share, from 1.
        of: How many there are.
        batch_size: Images that were embedded together.
        numbers: In which numbers, as `Encoder.number_format` says.
        devices: What embedded it: more than one if another worker went on with it.
    """

    number: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
    of: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
    batch_size: Count
    numbers: str
    devices: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.number > self.of:
            raise ValueError(f"a shard is one of 1/{self.of} to {self.of}/{self.of}, got {self}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def run(self, images: int, shard_size: int) -> range:
        """Places in the list of its images.

        Raises:
            ValueError: If there are more shares than shards.
        """
        shards = -(-images // shard_size)
        if self.of > shards:
            raise ValueError(
                f"{images:,} images are {shards:,} runs of {shard_size:,}, so they make no more "
                f"shards than that; got --shard {self}"
            )
        first, last = ((self.number + step) * shards // self.of for step in (-1, 0))
        return range(first * shard_size, min(last * shard_size, images))


class Plan(_Part, frozen=True, omit_defaults=True):
    """What an unfinished build set out to do.

    Attributes:
        list_sha256: Of the list of images; see `list_fingerprint`.
        shard_size: Images of the list per shard.
        share: Which of them, if several workers share a build; the key is missing if all.
    """

    list_sha256: str
    shard_size: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
    share: Share | None = None

    def run(self, images: int) -> range:
        """Places in a list of so many images of those that are to be embedded."""
        return range(images) if self.share is None else self.share.run(images, self.shard_size)


class Manifest(_Part, frozen=True, kw_only=True):
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
        forgotten: Names of images that additions leave out; the key is missing if there is none.

    Raises:
        ValueError: If counts and files disagree, or there is no vector.
    """

    format_version: Count = FORMAT_VERSION
    generation: Count
    next_id: Count
    next_shard: Count
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
    forgotten: tuple[str, ...] = ()

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
        values = msgspec.to_builtins(self)
        if not self.forgotten:
            del values["forgotten"]
        return sealed(values)

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: If it is not JSON, of another version, damaged, or not exactly what
                `to_json` writes.
        """
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has {len(text):,} bytes, more than the limit of {MAX_BYTES:,}")
        values = parse_json(text, dict[str, Any], "complete JSON")
        version = values.get("format_version")
        if version != FORMAT_VERSION or type(version) is not int:
            old = type(version) is int and version < FORMAT_VERSION
            raise ValueError(
                f"it has format version {version!r}, this program reads version {FORMAT_VERSION}; "
                + ("build the index again" if old else "use a newer program")
            )
        if SEAL not in values or not is_whole(values):
            raise ValueError("it is damaged: its content is not what was written")
        del values[SEAL]
        try:
            return msgspec.convert(values, cls)
        except ValueError as error:
            raise ValueError(f"it is no manifest: {error}") from error
