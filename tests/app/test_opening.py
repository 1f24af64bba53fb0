from __future__ import annotations

import pytest

from app.options import load_encoder_for
from indexing import Corpus, ImageIndex
from matvit.checkpoint import save_encoder
from matvit.extraction import ExtractedViT, extract
from matvit.model import MatViT


@pytest.fixture
def index(tiny_model, photo_folder, tmp_path) -> ImageIndex:
    return ImageIndex.build(tiny_model, Corpus.open(photo_folder), tmp_path / "i.index")


def test_a_named_encoder_is_loaded_whole_or_extracted(index, tiny_model, tmp_path):
    whole = tiny_model.save(tmp_path / "whole")
    small = save_encoder(extract(tiny_model, "S"), tmp_path / "small")
    assert isinstance(load_encoder_for(index, str(whole)), MatViT)
    loaded = load_encoder_for(index, str(small))
    assert isinstance(loaded, ExtractedViT)
    assert loaded.fingerprint == tiny_model.fingerprint


def test_an_index_of_an_unbundled_encoder_asks_for_its_folder(index):
    with pytest.raises(ValueError, match="built by encoder 'tiny', which is not bundled; name its"):
        load_encoder_for(index)


def test_an_encoder_that_is_not_there_is_an_error(index, tmp_path):
    with pytest.raises(FileNotFoundError, match="no encoder"):
        load_encoder_for(index, str(tmp_path / "gone"))
