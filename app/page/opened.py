"""An index that is open: its encoder, and everything kept about it while it does not change."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from app.options import AUTO
from app.page.measured import Tuned, read_tuned
from app.page.pictures import Kept, Pictures, Query, Sights
from indexing import MANIFEST, NEARLY_SAME, IndexedImages, Plane, Where, read_manifest
from matvit import Encoder, ImageLike
from retrieval import (
    TUNING,
    Asked,
    AutoRetriever,
    Hits,
    Retriever,
    Stored,
    Together,
    Tuning,
    Wish,
)

FEWEST_HITS, MOST_HITS = 1, 12
"""Hits of an answer that can be shown."""

KEPT = 2048
"""Answers of one index that are kept: less than 20 MB."""

MOST = MOST_HITS + 1
"""Hits of every answer: those that can be shown, and the query itself."""


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What a visitor adds to a query: images more, images not, and what may answer.

    Attributes:
        more: Ids of images that answers should be like too.
        less: Ids of images that they should not be like.
        where: A filter.
        collapse: Whether near-duplicates are shown once.
    """

    more: tuple[int, ...] = ()
    less: tuple[int, ...] = ()
    where: Where = Where()
    collapse: bool = False

    @property
    def asks_with_several(self) -> bool:
        """Whether images were added."""
        return bool(self.more or self.less)

    def wish(self, query: Query) -> Wish:
        """What may answer: never what is asked with."""
        if self == Refined():
            return Wish()
        own = () if query.id is None else (query.id,)
        return Wish(
            where=self.where,
            leave_out=(*own, *self.more),
            collapse=NEARLY_SAME if self.collapse else None,
        )

    def question(self, image: ImageLike) -> Asked:
        """Put the query and what was added together."""
        if not self.asks_with_several:
            return image
        more, less = (tuple(map(Stored, ids)) for ids in (self.more, self.less))
        return Together(like=(image, *more), unlike=less)


_Identity = tuple[int, int, int]
Stamp = tuple[str | tuple[str, _Identity], ...]


class Answers:
    """Asks an index, and remembers what it said and how long that took.

    Every question is asked for the most hits there may be, so that showing more or fewer of them
    asks nothing again. Before its first question a submodel answers once for nothing, since that
    selects kernels and fills caches. One question is asked at a time, so that its milliseconds are
    its own.

    Args:
        retriever: The index and its encoder.
        sights: Queries that were decoded already.
        kept: Most answers to remember.
    """

    def __init__(self, retriever: Retriever, sights: Sights, kept: int = KEPT) -> None:
        self._retriever, self._sights = retriever, sights
        self._kept: Kept[tuple[str, str, Refined], Hits] = Kept(kept)
        self._warm: set[str] = set()
        self._one_at_a_time = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def to(self, query: Query, submodel: str, k: int, refined: Refined = Refined()) -> Hits:
        """Find the k images of the index most similar to the query, as it was refined.

        Raises:
            ValueError: If the query cannot be read, the submodel is not one of the encoder's, or
                k is above `MOST`.
        """
        if k > MOST:
            raise ValueError(f"at most {MOST} hits are kept of an answer, got k={k}")
        key = query.digest, submodel, refined
        found = self._kept.made(key, lambda: self._ask(query, submodel, refined))
        return replace(found, hits=found.hits[:k])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every new question waiting while something else is timed."""
        with self._one_at_a_time:
            yield

    def _ask(self, query: Query, submodel: str, refined: Refined) -> Hits:
        image, wish = self._decoded(query), refined.wish(query)
        with self.alone():
            self._warm_up(image, submodel)
            return self._search(refined.question(image), submodel, wish)

    def _warm_up(self, image: ImageLike, submodel: str) -> None:
        """Let a submodel answer for nothing; of `auto`, all that it may go on to."""
        if submodel in self._warm:
            return
        rungs = self._auto.escalation.ladder if submodel == AUTO else ()
        for name in (*rungs, submodel):
            if name not in self._warm:
                self._search(image, name)
                self._warm.add(name)

    def _search(self, image: Asked, submodel: str, wish: Wish = Wish()) -> Hits:
        if submodel == AUTO:
            return self._auto.search(image, MOST, wish)
        return self._retriever.search(image, submodel, MOST, wish)

    @cached_property
    def _auto(self) -> AutoRetriever:
        tuning = Tuning.of(self._retriever.index, self._retriever.encoder)
        return AutoRetriever(self._retriever, tuning)

    def _decoded(self, query: Query) -> ImageLike:
        """Take what comes out the same when it is decoded again; leave alone all else."""
        pixels = self._sights.of(query).pixels
        whole = self._retriever.encoder.preprocess.crop_pct == 1
        return Image.fromarray(pixels) if whole else query.data


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An index that is open, shared by everyone who looks at the page.

    Attributes:
        retriever: The index and its encoder.
        sights: What was looked at to ask with.
        answers: What was asked of it already.
        pictures: Thumbnails of its images.
    """

    retriever: Retriever
    sights: Sights
    answers: Answers
    pictures: Pictures

    @property
    def index(self) -> IndexedImages:
        """The index."""
        return self.retriever.index

    def row_of(self, number: int) -> int:
        """Return the row of the image with this id.

        Raises:
            KeyError: If the index has no such image.
        """
        return int(self.index.rows_of(np.array(number)))

    @cached_property
    def full(self) -> str:
        """The largest submodel that the encoder has, as text."""
        return str(self.retriever.encoder.submodel(None))

    @cached_property
    def info(self) -> dict[str, Any]:
        """The index in plain JSON values."""
        return self.index.info()

    @cached_property
    def plane(self) -> Plane:
        """The plane in which the images differ most."""
        return Plane.of(self.index.embeddings)

    @cached_property
    def tuned(self) -> Tuned:
        """What tuning stored with the index."""
        return read_tuned(self.retriever)


def open_all(index: IndexedImages, encoder: Encoder) -> Opened:
    """Put an index and an encoder together, with nothing asked yet.

    Raises:
        IndexMismatchError: If the index was built by another encoder.
    """
    retriever, sights = Retriever(encoder, index), Sights(encoder.preprocess)
    return Opened(
        retriever=retriever,
        sights=sights,
        answers=Answers(retriever, sights),
        pictures=Pictures(index, encoder.preprocess),
    )


@cache
def out_of_the_collector() -> None:
    """Spare the garbage collector what is loaded by now: libraries and the encoder. Once only.

    Streamlit collects after every run of the page. With PyTorch loaded that means half a million
    objects, and a quarter of a second or more in which no visitor is answered. What is loaded
    later may be replaced, and the collector has to be able to find it then.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else libraries report at the end what was never collected


def stamp(path: Path) -> Stamp:
    """Say which state of an index lies at `path`: another stamp, other answers.

    What a search finds is decided by the files that the manifest has searched, and by tuning. An
    unfinished addition changes the manifest again and again, and neither of them.

    Raises:
        FileNotFoundError: If there is nothing.
    """
    manifest, tuning = path / MANIFEST, path / TUNING
    tuned = (_identity(tuning),) if tuning.exists() else ()
    return (_searched(path, _identity(manifest)), *tuned)


def encoder_stamp(folder: Path) -> Stamp:
    """Say which state of an encoder lies in a folder; nothing if there is none."""
    return tuple(map(_identity, sorted(folder.glob("*"))))


@lru_cache(maxsize=8)
def _searched(path: Path, manifest: tuple[str, _Identity]) -> str | tuple[str, _Identity]:
    """Name what is searched, or the manifest's file if it cannot be read: opening tells why."""
    try:
        found = read_manifest(path)
    except (ValueError, OSError):
        return manifest
    return ",".join([str(found.generation), *(file.sha256 for file in found.searched_files)])


def _identity(file: Path) -> tuple[str, _Identity]:
    found = file.stat()
    return file.name, (found.st_ino, found.st_mtime_ns, found.st_size)
