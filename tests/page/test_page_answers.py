from __future__ import annotations

from dataclasses import replace

import pytest
from photo_index import open_photos, tune, upload

from app.page.answers import Answers
from app.page.query import Query
from app.page.sight import Sights
from matvit.model import MatViT
from matvit.preprocess import Preprocess
from retrieval import AutoRetriever, Retriever


@pytest.fixture
def retriever(tiny_model, photo_folder, tmp_path) -> Retriever:
    return open_photos(tiny_model, photo_folder, tmp_path / "i.index").retriever


@pytest.fixture
def query(photo_folder) -> Query:
    return upload(photo_folder / "bread" / "01.png")


def make(retriever, **settings) -> Answers:
    return Answers(retriever, Sights(retriever.encoder.preprocess), **settings)


def untimed(hits):
    return replace(hits, encode_ms=0, search_ms=0, query=None)


@pytest.mark.parametrize("submodel", ["S", "XL", "1xS,1xXL"])
def test_answers_are_those_of_a_bare_search(retriever, query, submodel):
    wanted = retriever.search(query.data, submodel, 5)
    assert untimed(make(retriever).to(query, submodel, 5)) == untimed(wanted)


def test_an_encoder_that_sees_a_part_only_is_not_given_a_part_of_it(
    tiny_model, photo_folder, tmp_path, query
):
    """An image decoded once and cropped again would lose its border twice."""
    model = MatViT(tiny_model.config, Preprocess(img_size=16, crop_pct=0.7), "part")
    retriever = open_photos(model, photo_folder, tmp_path / "part.index").retriever
    wanted = retriever.search(query.data, "S", 5)
    assert untimed(make(retriever).to(query, "S", 5)) == untimed(wanted)


def test_nothing_is_embedded_again_for_the_same_question(retriever, query, monkeypatch):
    answers = make(retriever)
    first = answers.to(query, "S", 5)
    monkeypatch.setattr(retriever, "search", None)
    assert answers.to(Query(data=query.data, name="a copy"), "S", 5) == first
    assert answers.to(query, "S", 3).hits == first.hits[:3]  # fewer hits are no other question
    assert len(answers.to(query, "S", 12)) == 12
    with pytest.raises(TypeError):
        answers.to(query, "M", 5)


def test_more_hits_than_are_kept_are_an_error(retriever, query):
    with pytest.raises(ValueError, match="at most 13 hits are kept of an answer, got k=14"):
        make(retriever).to(query, "S", 14)


def test_only_so_many_answers_are_kept(retriever, query):
    answers = make(retriever, kept=3)
    for submodel in ("S", "M", "L", "XL", "1xS,1xXL"):
        answers.to(query, submodel, 3)
    assert len(answers) == 3


@pytest.fixture
def times(retriever, monkeypatch) -> list[float]:
    """What searching takes from now on, one after the other; what is left at the end."""
    search, ahead = retriever.search, []

    def timed(*arguments):
        return replace(search(*arguments), encode_ms=ahead.pop(0), search_ms=0)

    monkeypatch.setattr(retriever, "search", timed)
    return ahead


def test_milliseconds_are_the_median_of_three_after_one_for_nothing(
    retriever, query, times, monkeypatch
):
    monkeypatch.setattr("app.page.answers._ENOUGH_S", 60)
    answers = make(retriever)
    times += [900, 30, 10, 20]
    assert answers.to(query, "S", 3).encode_ms == 20
    times += [9, 7, 8]  # it is warm by now
    assert answers.to(replace(query, data=query.data + b"0"), "S", 3).encode_ms == 8
    assert not times


def test_what_takes_long_is_asked_once(retriever, query, times, monkeypatch):
    monkeypatch.setattr("app.page.answers._ENOUGH_S", 0)
    times += [900, 800]
    assert make(retriever).to(query, "S", 3).encode_ms == 800
    assert not times


def test_auto_is_warm_for_all_it_may_go_on_to(
    tiny_model, photo_folder, tmp_path, query, monkeypatch
):
    opened = open_photos(tiny_model, photo_folder, tmp_path / "tuned.index")
    tune(opened)
    asked, search, search_auto = [], opened.retriever.search, AutoRetriever.search

    def note(image, submodel, k):
        asked.append(submodel)
        return search(image, submodel, k)

    def note_auto(auto, image, k):
        asked.append("auto")
        return search_auto(auto, image, k)

    monkeypatch.setattr(opened.retriever, "search", note)
    monkeypatch.setattr(AutoRetriever, "search", note_auto)
    opened.answers.to(query, "auto", 3)
    assert asked[:4] == ["S", "XL", "auto", "auto"]
    assert set(asked[4:]) <= {"auto"}


def test_what_cannot_be_read_is_an_error_and_not_kept(retriever):
    answers = make(retriever)
    with pytest.raises(ValueError, match="not a readable image"):
        answers.to(Query(data=b"text", name="a"), "S", 3)
    assert len(answers) == 0
