from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.page.link import MOST_SUBMODELS, Link, read_link, write_link
from app.page.visit import blocks_of, from_blocks
from matvit.config import MatViTConfig
from matvit.submodel import Granularity, Submodel

CONFIG = MatViTConfig(img_size=64, patch_size=8, embed_dim=256, depth=6, num_heads=4)


def resolve(text: str) -> str:
    return str(Submodel.parse(text, depth=6, hidden_dim=1024))


def read(**params: list[str]) -> tuple[Link, list[str]]:
    return read_link(params, "a.index", has_image=lambda n: 0 <= n < 100, resolve=resolve)


def test_a_link_says_what_is_shown():
    link, wrong = read(index=["a.index"], query=["7"], submodel=["S", "2xS,4xM"], k=["3"])
    assert link == Link(index="a.index", query=7, submodels=("S", "2xS,4xM"), k=3)
    assert wrong == []


def test_nothing_said_is_nothing_wrong():
    assert read() == (Link(index="a.index"), [])


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"index": ["b.index"]}, "it is about the index 'b.index', and this is a.index"),
        ({"query": ["100"]}, "there is no image '100'"),
        ({"query": ["../etc"]}, "there is no image '../etc'"),
        ({"query": ["-1"]}, "there is no image '-1'"),
        ({"query": ["9" * 30]}, "there is no image '" + "9" * 30 + "'"),
        ({"k": ["0"]}, "k is from 1 to 12, not '0'"),
        ({"k": ["many"]}, "k is from 1 to 12, not 'many'"),
        ({"submodel": ["huge"]}, "unknown size 'huge'; known sizes: S, M, L, XL"),
        ({"submodel": ["S"] * (MOST_SUBMODELS + 1)}, "at most 8 submodels are shown"),
    ],
)
def test_what_cannot_be_done_is_left_out_and_named(params, complaint):
    link, wrong = read(**params)
    assert wrong == [complaint]
    assert (link.query, link.k) == (None, None)


def test_the_rest_of_a_link_holds():
    link, wrong = read(query=["5"], submodel=["huge", "m"], k=["99"])
    assert link == Link(index="a.index", query=5, submodels=("M",))
    assert len(wrong) == 2


def test_a_link_about_another_index_changes_nothing():
    link, _ = read(index=["b.index"], query=["7"], k=["3"])
    assert link == Link(index="a.index")


SIZES = st.lists(st.sampled_from(["S", "M", "L", "XL"]), min_size=6, max_size=6).map(
    lambda sizes: resolve(",".join(f"1x{size}" for size in sizes))
)


@given(
    st.builds(
        Link,
        index=st.just("a.index"),
        query=st.none() | st.integers(0, 99),
        submodels=st.lists(SIZES, unique=True, max_size=MOST_SUBMODELS).map(tuple),
        k=st.none() | st.integers(1, 12),
    )
)
def test_reading_undoes_writing(link):
    assert read(**write_link(link)) == (link, [])


@given(st.dictionaries(st.sampled_from(["index", "query", "submodel", "k"]), st.lists(st.text())))
def test_no_address_is_an_error(params):
    link, _ = read(**params)
    assert link.k is None or 1 <= link.k <= 12


@given(st.lists(st.sampled_from(Granularity), min_size=6, max_size=6))
def test_blocks_make_a_submodel_and_a_submodel_blocks(sizes):
    assert blocks_of(from_blocks(CONFIG, sizes)) == sizes


def test_a_width_between_two_sizes_is_shown_as_the_smaller():
    assert blocks_of(Submodel.parse("3x200,2x600,1x5", depth=6, hidden_dim=CONFIG.hidden_dim)) == [
        "S",
        "S",
        "S",
        "L",
        "L",
        "S",
    ]
