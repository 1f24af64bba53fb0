from __future__ import annotations

import pytest

from app.options import MIXES, load_encoder_for, parse_sizes
from indexing import Corpus, ImageIndex
from matvit.config import MatViTConfig
from matvit.extraction import extract
from matvit.loading import save_encoder


@pytest.fixture
def index(tiny_model, photo_folder, tmp_path) -> ImageIndex:
    return ImageIndex.build(tiny_model, Corpus.open(photo_folder), tmp_path / "i.index")


def test_a_named_encoder_is_loaded_whole_or_extracted(index, tiny_model, tmp_path):
    whole = tiny_model.save(tmp_path / "whole")
    small = save_encoder(extract(tiny_model, "S"), tmp_path / "small")
    assert load_encoder_for(index, str(whole)).is_whole
    loaded = load_encoder_for(index, str(small))
    assert not loaded.is_whole
    assert loaded.fingerprint == tiny_model.fingerprint


def test_an_index_of_an_unbundled_encoder_asks_for_its_folder(index):
    with pytest.raises(ValueError, match="built by encoder 'tiny', which is not bundled; name its"):
        load_encoder_for(index)


def test_an_encoder_that_is_not_there_is_an_error(index, tmp_path):
    with pytest.raises(FileNotFoundError, match="no encoder"):
        load_encoder_for(index, str(tmp_path / "gone"))


CONFIG = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=6, num_heads=2)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("S,M,L,XL", ["S", "M", "L", "XL"]),
        ("2xS,4xXL", ["2xS,4xXL"]),
        ("S, 2xS,2xM,2xXL ,XL", ["S", "2xS,2xM,2xXL", "XL"]),
        ("6xS,S,s", ["S"]),
        ("33", ["6x33"]),
        ("S~,M~:int8, XL", ["S~", "M~:int8", "XL"]),
        ("S~0,1,0,1,0,0,M", ["S~0,1,0,1,2x0", "M"]),
        ("S~3x0,2x1,0,33", ["S~3x0,2x1,0", "6x33"]),
        ("2xS,4xXL~3x0,2x1,0:int8,2xM,4xL", ["2xS,4xXL~3x0,2x1,0:int8", "2xM,4xL"]),
        ("S~0,M", ["S", "M"]),
    ],
)
def test_lists_of_submodels_are_read(text, names):
    assert [str(submodel) for submodel in parse_sizes(text, CONFIG)] == names


def test_mix_stands_for_a_spread_of_submodels():
    chosen = [str(submodel) for submodel in parse_sizes("XL,mix", CONFIG)]
    assert chosen[:2] == ["XL", "S"]
    assert 4 < len(chosen) <= MIXES
    assert len(set(chosen)) == len(chosen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S,huge", "unknown size 'huge'; known sizes: S, M, L, XL"),
        ("", "cannot read submodel part ''"),
        ("2xS,2xM", "2xS,2xM describes 4 blocks, not 6"),
        ("2xS,M", "2xS describes 2 blocks, not 6"),
        ("2xS,5xM", "describes 7 blocks, not 6"),
        ("S~0,1,M", "0,1 describes 2 blocks, not 6"),
    ],
)
def test_lists_that_do_not_add_up_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_sizes(text, CONFIG)
