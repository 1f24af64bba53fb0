from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.page.bounded import Bounded


def test_what_was_made_is_not_made_again():
    made = []
    kept: Bounded[str, int] = Bounded(2)

    def make() -> int:
        made.append(1)
        return 7

    assert [kept.get("a", make), kept.get("a", make)] == [7, 7]
    assert len(made) == 1


def test_what_was_used_least_recently_goes_first():
    kept: Bounded[str, str] = Bounded(2)
    for key in "abac":
        kept.get(key, lambda key=key: key)
    assert kept.get("a", lambda: "made again") == "a"
    assert kept.get("b", lambda: "made again") == "made again"


def test_what_is_larger_than_the_limit_is_returned_and_not_kept():
    kept: Bounded[int, bytes] = Bounded(10, len)
    assert kept.get(1, lambda: b"x" * 11) == b"x" * 11
    assert (len(kept), kept.used) == (0, 0)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 30))
def test_it_behaves_as_a_list_ordered_by_use(keys, limit):
    """The oracle: a plain list of keys, the size of each key being the key plus one."""
    kept: Bounded[int, int] = Bounded(limit, lambda value: value + 1)
    order: list[int] = []
    for key in keys:
        assert kept.get(key, lambda key=key: key) == key
        order = [each for each in order if each != key] + [key]
        while sum(each + 1 for each in order) > limit:
            order.pop(0)
        assert kept.used == sum(each + 1 for each in order)
        assert len(kept) == len(order)
