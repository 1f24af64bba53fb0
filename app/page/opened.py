"""An index with its encoder and everything that is kept about it while it does not change."""

from __future__ import annotations

import atexit
import gc
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from app.page.answers import Answers
from app.page.pictures import Pictures
from app.page.tuned import Tuned, read_tuned
from indexing import ImageIndex
from indexing.manifest import MANIFEST
from matvit.extract import ExtractedViT
from matvit.model import MatViT
from retrieval import Retriever
from retrieval.tuning.record import FILE as TUNING

Stamp = tuple[tuple[str, int, int, int], ...]
_STATE = (MANIFEST, TUNING)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An index that is open, shared by everyone who looks at the page.

    Attributes:
        retriever: The index and its encoder.
        answers: What was asked of it already.
        pictures: Thumbnails of its images.
    """

    retriever: Retriever
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
    retriever = Retriever(encoder, index)
    return Opened(
        retriever=retriever,
        answers=Answers(retriever),
        pictures=Pictures(index, encoder.preprocess),
    )


def out_of_the_collector() -> None:
    """Spare the garbage collector what is loaded now, since it stays as long as the server.

    Streamlit collects after every run of the page. With PyTorch loaded that means half a million
    objects, and a quarter of a second or more in which no visitor is answered. What was garbage
    before is collected here, an index that was replaced included.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else libraries report at the end what was never collected


def stamp(path: Path) -> Stamp:
    """Say which state of an index lies at `path`: another stamp, another index.

    An index changes in one step, when its manifest is replaced; tuning adds a file of its own.

    Raises:
        FileNotFoundError: If there is nothing.
    """
    (path / MANIFEST).stat()  # an index without one is none
    files = [path / name for name in _STATE]
    return tuple((file.name, *_identity(file.stat())) for file in files if file.exists())


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_mtime_ns, found.st_size
