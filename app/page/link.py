"""Links to what a visitor of the page sees: read from an address, and written as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.page.opened import FEWEST_HITS, MOST_HITS

MOST_SUBMODELS = 8
"""Submodels that one link may ask for: each is an embedding to compute."""

NAMES = ("index", "query", "submodel", "k")
"""What a link says, in the address."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a link says; None and empty where it says nothing.

    Attributes:
        index: Name of the index that it is about.
        query: Id of the image to ask with.
        submodels: What answers, as text.
        k: Hits of each.
    """

    index: str | None = None
    query: int | None = None
    submodels: tuple[str, ...] = ()
    k: int | None = None


def read_link(
    params: Mapping[str, Sequence[str]],
    index: str,
    *,
    has_image: Callable[[int], bool],
    resolve: Callable[[str], str],
) -> tuple[Link, list[str]]:
    """Read a link, leaving out whatever this page cannot do.

    Args:
        params: Values of each name in the address.
        index: Name of the index that is open: the only one there is.
        has_image: Whether the index has an image with this id.
        resolve: Turns a submodel as typed into its usual text, or raises ValueError.

    Returns:
        What is left, and what is wrong with the rest.
    """
    link, wrong = Link(index=index), []
    asked = list(params.get("index", ()))
    if asked and asked != [index]:
        wrong.append(f"it is about the index {_short(asked[-1])}, and this is {index}")
        return link, wrong
    query = _number(params, "query")
    if query is not None and has_image(query):
        link = replace(link, query=query)
    elif params.get("query"):
        wrong.append(f"there is no image {_short(params['query'][-1])}")
    k = _number(params, "k")
    if k is not None and FEWEST_HITS <= k <= MOST_HITS:
        link = replace(link, k=k)
    elif params.get("k"):
        wrong.append(f"k is from {FEWEST_HITS} to {MOST_HITS}, not {_short(params['k'][-1])}")
    submodels, unknown = _submodels(params.get("submodel", ()), resolve)
    return replace(link, submodels=submodels), wrong + unknown


def write_link(link: Link) -> dict[str, list[str]]:
    """Write a link as the values of each name in an address."""
    said = {
        "index": [link.index] if link.index is not None else [],
        "query": [str(link.query)] if link.query is not None else [],
        "submodel": list(link.submodels),
        "k": [str(link.k)] if link.k is not None else [],
    }
    return {name: values for name, values in said.items() if values}


def _submodels(
    asked: Sequence[str], resolve: Callable[[str], str]
) -> tuple[tuple[str, ...], list[str]]:
    known, wrong = [], []
    for text in asked[:MOST_SUBMODELS]:
        try:
            known.append(resolve(text[:200]))
        except ValueError as error:
            wrong.append(str(error))
    if len(asked) > MOST_SUBMODELS:
        wrong.append(f"at most {MOST_SUBMODELS} submodels are shown")
    return tuple(dict.fromkeys(known)), wrong


def _number(params: Mapping[str, Sequence[str]], name: str) -> int | None:
    """Read a whole number of at most 18 digits."""
    values = params.get(name, ())
    text = values[-1] if values else ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
