from __future__ import annotations

import gc
import shutil
import weakref

import pytest
from photo_index import open_photos
from PIL import Image

from app.page.comparison import compare
from app.page.opened import encoder_stamp, open_all, out_of_the_collector, stamp
from app.page.query import stored_query
from indexing import Corpus, ImageIndex, IndexMismatchError, add
from indexing.store.folder import commit
from matvit.extraction import extract


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
    index.remove([0])
    seen.append(stamp(path))
    index.compact()
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
    monkeypatch.setattr(add, "SHARD_SIZE", 1)

    def noted(folder, manifest):
        commit(folder, manifest)
        seen.append((stamp(folder) == before, len(manifest.staged)))

    monkeypatch.setattr(add, "commit", noted)
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
