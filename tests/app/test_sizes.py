from __future__ import annotations

import pytest

from app.options import MIXES, parse_sizes
from matvit.config import MatViTConfig

CONFIG = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=6, num_heads=2)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("S,M,L,XL", ["S", "M", "L", "XL"]),
        ("2xS,4xXL", ["2xS,4xXL"]),
        ("S, 2xS,2xM,2xXL ,XL", ["S", "2xS,2xM,2xXL", "XL"]),
        ("6xS,S,s", ["S"]),
        ("33", ["6x33"]),
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
    ],
)
def test_lists_that_do_not_add_up_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_sizes(text, CONFIG)
