from __future__ import annotations

import gc
import weakref

import pytest
from photo_index import open_photos

from app.page.opened import open_all, out_of_the_collector, stamp
from indexing import ImageIndex, IndexMismatchError
from matvit.extract import extract


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
    opened.retriever.warm_up()
    opened.pictures.of(0)
    assert stamp(path) == before


def test_no_index_has_no_stamp(tmp_path):
    with pytest.raises(FileNotFoundError):
        stamp(tmp_path / "gone.index")


class Ring:
    """Garbage that only the collector can find."""

    def __init__(self):
        self.itself = self


@pytest.fixture
def collector():
    yield gc
    gc.unfreeze()


def test_what_is_loaded_is_spared_by_the_collector(collector):
    loaded = Ring()
    out_of_the_collector()
    assert collector.get_freeze_count() > 1000
    assert not any(each is loaded for each in collector.get_objects())


def test_what_was_replaced_is_collected_before(collector):
    replaced = Ring()
    out_of_the_collector()
    gone = weakref.ref(replaced)
    del replaced
    collector.collect()
    assert gone() is not None  # frozen: nobody looks at it any more
    out_of_the_collector()
    assert gone() is None
