"""An index with its encoder and everything that is kept about it while it does not change."""

from __future__ import annotations

import atexit
import gc
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from app.page.answers import Answers
from app.page.pictures import Pictures
from app.page.sight import Sights
from app.page.tuned import Tuned, read_tuned
from indexing import MANIFEST, ImageIndex, read_manifest
from matvit import ExtractedViT, MatViT
from retrieval import TUNING, Retriever

_Identity = tuple[int, int, int]
Stamp = tuple[str | tuple[str, _Identity], ...]


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
    def index(self) -> ImageIndex:
        """The index."""
        return self.retriever.index

    @cached_property
    def full(self) -> str:
        """The largest submodel that the encoder has, as text."""
        return str(self.retriever.encoder.submodel(None))

    @cached_property
    def info(self) -> dict[str, Any]:
        """The index in plain JSON values."""
        return self.index.info()

    @cached_property
    def tuned(self) -> Tuned:
        """What tuning stored with the index."""
        return read_tuned(self.retriever)


def open_all(index: ImageIndex, encoder: MatViT | ExtractedViT) -> Opened:
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
