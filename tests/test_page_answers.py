from __future__ import annotations

from dataclasses import replace

import pytest
from photo_index import open_photos, upload

from app.page.answers import Answers
from app.page.query import Query
from matvit.model import MatViT
from matvit.preprocess import Preprocess
from retrieval import Retriever


@pytest.fixture
def retriever(tiny_model, photo_folder, tmp_path) -> Retriever:
    return open_photos(tiny_model, photo_folder, tmp_path / "i.index").retriever


@pytest.fixture
def query(photo_folder) -> Query:
    return upload(photo_folder / "bread" / "01.png")


def untimed(hits):
    return replace(hits, encode_ms=0, search_ms=0, query=None)


@pytest.mark.parametrize("submodel", ["S", "XL", "1xS,1xXL"])
def test_answers_are_those_of_a_bare_search(retriever, query, submodel):
    wanted = retriever.search(query.data, submodel, 5)
    assert untimed(Answers(retriever).to(query, submodel, 5)) == untimed(wanted)


def test_an_encoder_that_sees_a_part_only_is_not_given_a_part_of_it(
    tiny_model, photo_folder, tmp_path, query
):
    """An image decoded once and cropped again would lose its border twice."""
    model = MatViT(tiny_model.config, Preprocess(image_size=16, crop_pct=0.7), "part")
    retriever = open_photos(model, photo_folder, tmp_path / "part.index").retriever
    wanted = retriever.search(query.data, "S", 5)
    assert untimed(Answers(retriever).to(query, "S", 5)) == untimed(wanted)


def test_nothing_is_embedded_again_for_the_same_question(retriever, query, monkeypatch):
    answers = Answers(retriever)
    first = answers.to(query, "S", 5)
    monkeypatch.setattr(retriever, "search", None)
    assert answers.to(Query(data=query.data, name="a copy"), "S", 5) is first
    with pytest.raises(TypeError):
        answers.to(query, "S", 4)


def test_only_so_many_answers_are_kept(retriever, query):
    answers = Answers(retriever, kept=3)
    for k in range(1, 9):
        answers.to(query, "S", k)
    assert len(answers) == 3


def test_what_cannot_be_read_is_an_error_and_not_kept(retriever):
    answers = Answers(retriever)
    with pytest.raises(ValueError, match="not a readable image"):
        answers.to(Query(data=b"text", name="a"), "S", 3)
    assert len(answers) == 0
