from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace

import pytest
from photo_index import open_photos, tune, upload
from PIL import Image

from app.page.comparison import compare
from app.page.opened import Answers, encoder_stamp, open_all, out_of_the_collector, stamp
from app.page.pictures import Query, Sights, stored_query
from indexing import Corpus, ImageIndex, IndexMismatchError, stage, write
from indexing.store.folder import commit
from matvit.extraction import extract
from matvit.model import MatViT
from matvit.preprocess import Preprocess
from retrieval import AutoRetriever, Retriever


def test_an_index_is_opened_with_its_encoder(tiny_model, photo_folder, tmp_path):
    opened = open_photos(tiny_model, photo_folder, tmp_path / "i.index")
    assert (len(opened.index), opened.full) == (12, "XL")
    assert opened.info == opened.index.info()


def test_an_extracted_encoder_is_as_large_as_it_is(tiny_model, photo_folder, tmp_path):
    index = open_photos(tiny_model, photo_folder, tmp_path / "i.index").index
    assert open_all(index, extract(tiny_model, "M")).full == "M"


def test_another_encoder_is_refused(tiny_model, photo_folder, tmp_path):
    index = open_photos(tiny_model, photo_folder, tmp_path / "i.index").index
    other = type(tiny_model)(tiny_model.config, tiny_model.preprocess, "other")
    with pytest.raises(IndexMismatchError):
        open_all(index, other)


def test_every_change_of_an_index_is_another_stamp(tiny_model, photo_folder, tmp_path):
    path = tmp_path / "i.index"
    index = open_photos(tiny_model, photo_folder, path).index
    seen = [stamp(path)]
    assert stamp(path) == seen[0]
    index = index.remove([0])
    seen.append(stamp(path))
    index = index.compact()
    seen.append(stamp(path))
    (path / "tuning.json").write_text("{}")
    seen.append(stamp(path))
    assert len(set(seen)) == 4


def test_opening_and_searching_do_not_change_the_stamp(tiny_model, photo_folder, tmp_path):
    path = tmp_path / "i.index"
    opened = open_photos(tiny_model, photo_folder, path)
    before = stamp(path)
    ImageIndex.open(path)
    opened.retriever.search(photo_folder / "bread" / "01.png")
    opened.pictures.of(0)
    assert stamp(path) == before


def test_no_index_has_no_stamp(tmp_path):
    with pytest.raises(FileNotFoundError):
        stamp(tmp_path / "gone.index")


def test_an_unfinished_addition_does_not_change_the_stamp(
    tiny_model, photo_folder, tmp_path, monkeypatch
):
    """It stores shard after shard, none of which is searched before all are there."""
    path, seen = tmp_path / "i.index", []
    index = open_photos(tiny_model, photo_folder, path).index
    before = stamp(path)
    for number in range(4):
        Image.new("L", (9, 9), 60 * number).save(photo_folder / "apple" / f"new{number}.png")
    monkeypatch.setattr(write, "SHARD_SIZE", 1)

    def noted(folder, manifest):
        commit(folder, manifest)
        seen.append((stamp(folder) == before, len(manifest.staged)))

    monkeypatch.setattr(stage, "commit", noted)
    index.add(tiny_model, Corpus.open(photo_folder))
    assert (True, 2) in seen
    assert all(same == (staged > 0) for same, staged in seen)
    assert stamp(path) != before


def test_another_index_in_the_same_place_is_another_stamp(tiny_model, photo_folder, tmp_path):
    path = tmp_path / "i.index"
    open_photos(tiny_model, photo_folder, path)
    before = stamp(path)
    shutil.rmtree(path)
    shutil.rmtree(photo_folder / "apple")
    open_photos(tiny_model, photo_folder, path)
    assert stamp(path) != before


def test_an_encoder_that_was_saved_again_has_another_stamp(tiny_model, tmp_path):
    tiny_model.save(tmp_path / "encoder")
    before = encoder_stamp(tmp_path / "encoder")
    assert encoder_stamp(tmp_path / "encoder") == before
    tiny_model.save(tmp_path / "encoder")
    assert encoder_stamp(tmp_path / "encoder") != before
    assert encoder_stamp(tmp_path / "nowhere") == ()


class Ring:
    """Garbage that only the collector can find."""

    def __init__(self):
        self.itself = self


@pytest.fixture
def collector():
    out_of_the_collector.cache_clear()
    yield gc
    gc.unfreeze()
    out_of_the_collector.cache_clear()


def test_what_is_loaded_is_spared_by_the_collector(collector):
    loaded = Ring()
    out_of_the_collector()
    assert collector.get_freeze_count() > 1000
    assert not any(each is loaded for each in collector.get_objects())


def test_what_is_loaded_later_is_collected(collector):
    out_of_the_collector()
    later = Ring()
    out_of_the_collector()
    gone = weakref.ref(later)
    del later
    collector.collect()
    assert gone() is None


def test_an_index_that_is_replaced_goes_without_the_collector(tiny_model, photo_folder, tmp_path):
    opened = open_photos(tiny_model, photo_folder, tmp_path / "i.index")
    compare(opened, stored_query(opened.index, 3), ["S", "XL"], k=3)
    gone = [weakref.ref(each) for each in (opened.index, opened.answers, opened.pictures)]
    gc.collect()
    gc.disable()
    try:
        del opened
        assert [each() for each in gone] == [None] * 3
    finally:
        gc.enable()


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


def test_milliseconds_are_those_of_one_question_after_one_for_nothing(retriever, query, times):
    answers = make(retriever)
    times += [900, 30]
    assert answers.to(query, "S", 3).encode_ms == 30
    times += [9]  # it is warm by now
    assert answers.to(replace(query, data=query.data + b"0"), "S", 3).encode_ms == 9
    assert not times


def test_auto_is_warm_for_all_it_may_go_on_to(
    tiny_model, photo_folder, tmp_path, query, monkeypatch
):
    opened = open_photos(tiny_model, photo_folder, tmp_path / "tuned.index")
    tune(opened)
    asked, search, search_auto = [], opened.retriever.search, AutoRetriever.search

    def note(image, submodel, *how):
        asked.append(submodel)
        return search(image, submodel, *how)

    def note_auto(auto, image, *how):
        asked.append("auto")
        return search_auto(auto, image, *how)

    monkeypatch.setattr(opened.retriever, "search", note)
    monkeypatch.setattr(AutoRetriever, "search", note_auto)
    opened.answers.to(query, "auto", 3)
    assert asked == ["S", "XL", "auto", "auto"]


def test_what_cannot_be_read_is_an_error_and_not_kept(retriever):
    answers = make(retriever)
    with pytest.raises(ValueError, match="not a readable image"):
        answers.to(Query(data=b"text", name="a"), "S", 3)
    assert len(answers) == 0
