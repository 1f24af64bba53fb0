"""An index of six photos, and what it takes to update it."""

from __future__ import annotations

import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex, stage
from matvit.embedding import embed


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for number in range(6):
        photo(root / ("apple", "cheese")[number % 2] / f"{number}.png", number)
    (root / "apple/bad.png").write_text("no image")
    return root


@pytest.fixture
def index(photos, tmp_path):
    return ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "photos.index")


@pytest.fixture
def embedded(monkeypatch):
    """How many images were embedded, batch by batch."""
    counts = []

    def counting(encoder, pixels, **options):
        counts.append(len(pixels))
        return embed(encoder, pixels, **options)

    monkeypatch.setattr(stage, "embed", counting)
    return counts


@pytest.fixture
def add_all(photos, index):
    return lambda **options: index.add(ToyEncoder(), Corpus.open(photos), **options)
