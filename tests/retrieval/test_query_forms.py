"""A query is a path, bytes, a file, a Pillow image or an array; the answer is the same."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex
from retrieval import Retriever


@pytest.fixture
def retriever(tmp_path):
    for seed in range(4):
        photo(tmp_path / f"photos/{seed}.png", seed)
    index = ImageIndex.build(ToyEncoder(), Corpus.open(tmp_path / "photos"), tmp_path / "index")
    return Retriever(ToyEncoder(), index)


def test_all_forms_of_a_query_have_the_same_hits(retriever, tmp_path):
    path = tmp_path / "photos/2.png"
    with path.open("rb") as file, Image.open(path) as image:
        queries = [path, str(path), path.read_bytes(), file, image, np.asarray(image)]
        answers = retriever.search_batch(queries, k=2)
    assert [answer.hits for answer in answers] == [retriever.search(path, k=2).hits] * 6
    assert answers[0].hits[0].path == "2.png"
    named = [str(path)] * 2 + [None] + [str(path)] * 2 + [None]
    assert [answer.query for answer in answers] == named


def test_query_that_is_none_is_said_by_its_number(retriever, tmp_path):
    with pytest.raises(ValueError, match="^query 2: not a readable image: expected .*got int"):
        retriever.search_batch([tmp_path / "photos/2.png", 3])
    assert retriever.search(io.BytesIO((tmp_path / "photos/1.png").read_bytes())).query is None
