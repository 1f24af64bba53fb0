"""What the tests of building start from."""

from __future__ import annotations

import pytest

from indexing.corpus.corpus import Corpus


@pytest.fixture
def corpus(photo_folder):
    return Corpus.open(photo_folder)
