from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matvit.submodel import Granularity, Submodel

HIDDEN = 64


def parse(text: str, depth: int = 6, patches: int = 0) -> Submodel:
    return Submodel.parse(text, depth=depth, hidden_dim=HIDDEN, patches=patches)


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        ("S", (8,) * 6),
        ("xl", (64,) * 6),
        ("4xS,2xXL", (8, 8, 8, 8, 64, 64)),
        (" 4 x S , 2*XL ", (8, 8, 8, 8, 64, 64)),
        ("S,S,M,M,L,XL", (8, 8, 16, 16, 32, 64)),
        ("48", (48,) * 6),
        ("5x1,1x64", (1, 1, 1, 1, 1, 64)),
        ("6xM", (16,) * 6),
    ],
)
def test_parse_reads_what_people_write(text, widths):
    assert parse(text).widths == widths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("XXL", "unknown size 'XXL'; known sizes: S, M, L, XL"),
        ("", "cannot read submodel part ''"),
        ("4xS,", "cannot read submodel part ''"),
        ("S;M", "cannot read submodel part"),
        ("-3", "cannot read submodel part"),
        ("0xS,6xM", "repeats a size zero times"),
        ("3xS,2xM", "describes 5 blocks, not 6"),
        ("7xS", "describes 7 blocks, not 6"),
        ("0", r"width must be within 1\.\.64, got 0"),
        ("65", r"width must be within 1\.\.64, got 65"),
    ],
)
def test_parse_refuses_with_what_was_wanted(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@given(st.lists(st.integers(1, HIDDEN), min_size=1, max_size=12))
def test_printed_submodel_parses_to_itself(widths):
    submodel = Submodel(tuple(widths), HIDDEN)
    assert Submodel.parse(str(submodel), depth=len(widths), hidden_dim=HIDDEN) == submodel


def test_printed_form_is_run_length_with_names():
    assert str(parse("S")) == "S"
    assert str(Submodel((8, 8, 16, 33), HIDDEN)) == "2xS,1xM,1x33"
    assert str(parse("10")) == "6x10"


@pytest.mark.parametrize(
    ("text", "merged", "printed"),
    [
        ("S~", (0, 0, 16, 20, 0, 0), "S~"),
        ("S~2x0,16,20,2x0", (0, 0, 16, 20, 0, 0), "S~"),
        ("S~0,0,16,16,8,0", (0, 0, 16, 16, 8, 0), "S~2x0,2x16,8,0"),
        (" S ~ 2 x 0, 2*16 ,8,0 ", (0, 0, 16, 16, 8, 0), "S~2x0,2x16,8,0"),
        ("4xS,2xXL~8", (8,) * 6, "4xS,2xXL~8"),
        ("M~32,16,8,4,2,1:int8", (32, 16, 8, 4, 2, 1), "M~32,16,8,4,2,1:int8"),
        ("S~0", (), "S"),
        ("S~6x0", (), "S"),
    ],
)
def test_merged_tokens_are_read_and_printed(text, merged, printed):
    submodel = parse(text, patches=64)
    assert submodel.merged == merged
    assert str(submodel) == printed
    assert parse(printed, patches=64) == submodel


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S~x", "cannot read merged tokens 'x'; write a number for every block"),
        ("S~-1", "cannot read merged tokens '-1'"),
        ("S~0x1,6x2", "'0x1' repeat a number zero times"),
        ("S~0,0,16", "describes 3 blocks, not 6"),
        ("S~33,5x0", r"block 0: it can merge 0\.\.32 of its 64 patch tokens, got 33"),
        ("S~32,17,4x0", r"block 1: it can merge 0\.\.16 of its 32 patch tokens, got 17"),
        ("~", "cannot read submodel part ''"),
    ],
)
def test_merged_tokens_out_of_range_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, patches=64)


def test_merged_tokens_take_the_patches_of_a_model():
    with pytest.raises(ValueError, match="takes the number of patch tokens of the model"):
        parse("S~")
    with pytest.raises(ValueError, match="6 blocks needs as many counts of merged tokens, got 2"):
        Submodel((8,) * 6, HIDDEN, merged=(8, 8), patches=64)
    with pytest.raises(ValueError, match="must be an int, got 1.5"):
        Submodel((8,) * 2, HIDDEN, merged=(1.5, 8), patches=64)


@given(st.lists(st.tuples(st.integers(1, HIDDEN), st.floats(0, 1)), min_size=1, max_size=12))
def test_printed_schedule_parses_to_itself(blocks):
    left, merged = 64, []
    for _, share in blocks:
        merged.append(int(share * (left // 2)))
        left -= merged[-1]
    submodel = Submodel(tuple(w for w, _ in blocks), HIDDEN, merged=tuple(merged), patches=64)
    assert parse(str(submodel), depth=len(blocks), patches=64) == submodel


@pytest.mark.parametrize("depth", [2, 3, 6, 12, 24])
@pytest.mark.parametrize("patches", [1, 4, 16, 64, 196, 256])
def test_the_preset_fits_every_model(depth, patches):
    submodel = Submodel.parse("S~", depth=depth, hidden_dim=HIDDEN, patches=patches)
    assert sum(submodel.merged) <= 9 * patches / 16


@pytest.mark.parametrize("patches", range(1, 70))
def test_at_another_size_of_the_input_the_same_shares_are_merged(patches):
    blocks = parse("S~32,16,8,4,2,1", patches=64).blocks(patches)
    left = patches
    for merged, width in blocks:
        assert merged <= left // 2
        assert width == 8
        left -= merged
    assert left <= -(-patches // 64) + 6


def test_a_submodel_that_keeps_less_of_both_is_nested():
    def schedule(text):
        return parse(text, patches=64)

    assert schedule("S~") < parse("S") < parse("M")
    assert schedule("S~") < schedule("M~") < parse("M")
    assert schedule("S~0,16,20,0,0,0") < schedule("S~")
    assert not schedule("XL~") <= parse("L")
    assert not schedule("S~8,5x0") <= schedule("S~")
    with pytest.raises(ValueError, match="different models"):
        _ = schedule("S~") <= parse("S~", patches=36)
    assert not schedule("XL~").is_full
    assert schedule("XL~").is_wide


@pytest.mark.parametrize("widths", [(), (0, 8), (8, 65), (8.0, 8), (True, 8)])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError, match="width"):
        Submodel(widths, HIDDEN)


def test_granularities_are_the_papers_fractions():
    assert [size.width(512) for size in Granularity] == [64, 128, 256, 512]


def test_nesting_is_a_partial_order():
    assert parse("S") < parse("M") <= parse("M")
    assert not parse("3xS,3xXL") <= parse("L")
    assert not parse("L") <= parse("3xS,3xXL")
    with pytest.raises(ValueError, match="different models"):
        _ = parse("S") <= parse("S", depth=5)


def test_is_full_only_at_every_hidden_unit():
    assert parse("XL").is_full
    assert not parse("5xXL,1x63").is_full


def test_importing_submodels_does_not_import_torch():
    code = "import sys, matvit.mixes, matvit.submodel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
