"""An index with its encoder and everything that is kept about it while it does not change."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from app.page.answers import Answers
from app.page.pictures import Pictures
from indexing import ImageIndex
from matvit.extract import ExtractedViT
from matvit.model import MatViT
from retrieval import Retriever

Stamp = tuple[tuple[str, int, int, int], ...]
_ANYTHING_BUT = ("LOCK",)


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


def stamp(path: Path) -> Stamp:
    """Say which state of an index lies at `path`: another stamp, another index.

    An index changes in one step, when a file at the top of its folder is replaced.

    Raises:
        OSError: If there is nothing.
    """
    with os.scandir(path) as entries:
        found = [
            (entry.name, *_identity(entry.stat()))
            for entry in entries
            if entry.is_file() and entry.name not in _ANYTHING_BUT
        ]
    return tuple(sorted(found))


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_mtime_ns, found.st_size
