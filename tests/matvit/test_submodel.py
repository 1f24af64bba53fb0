from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matvit.submodel import Granularity, Submodel

HIDDEN = 64


def parse(text: str, depth: int = 6) -> Submodel:
    return Submodel.parse(text, depth=depth, hidden_dim=HIDDEN)


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
