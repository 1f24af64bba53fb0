"""An opened index of a few photos: what the tests of the page start from."""

from __future__ import annotations

from pathlib import Path

from app.page.opened import Opened, open_all
from app.page.query import Query
from indexing import Corpus, ImageIndex
from matvit.model import MatViT


def open_photos(model: MatViT, photos: Path, path: Path) -> Opened:
    """Index a folder of photos and open it with the encoder that did."""
    return open_all(ImageIndex.build(model, Corpus.open(photos), path), model)


def upload(path: Path) -> Query:
    """Ask with a file."""
    return Query(data=path.read_bytes(), name=path.name)
