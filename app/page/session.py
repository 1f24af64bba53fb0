"""What one visitor of the page wants to see: nothing here is shared with another."""

from __future__ import annotations

import random
from dataclasses import dataclass

import streamlit as st

from app.page.choice import Unit, blocks_of, budget_range, measured, spent, units
from app.page.link import NAMES, Link, read_link, write_link
from app.page.opened import Opened
from app.page.plain import plain
from app.page.query import Query, stored_query, uploaded_query
from matvit.submodel import Granularity
from retrieval import ParetoFrontier
from retrieval.escalation import AUTO

SEARCH, CHOOSE, CORPUS, EVALUATE = "Search", "Choose a size", "Corpus", "Evaluate"
_FEW_HITS = 6
_REMEMBERED = ("sizes", "k", "unit", "budget", "failures")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The page that a visitor looks at.

    Attributes:
        opened: The index and its encoder.
        frontier: What was measured, if anything.
    """

    opened: Opened
    frontier: ParetoFrontier | None

    @property
    def recommended(self) -> str | None:
        """The submodel that tuning recommends, if it did."""
        return self.opened.tuned.recommended

    @property
    def has_auto(self) -> bool:
        """Whether a query can choose for itself."""
        return self.opened.tuned.auto is not None

    @property
    def trained(self) -> list[str]:
        """The trained sizes that this encoder has; an extracted one has its own only."""
        full = self.opened.full
        return [size.value for size in Granularity] if full == "XL" else [full]

    def resolve(self, text: str) -> str:
        """Bring a submodel as typed to its usual text.

        Raises:
            ValueError: If it is not one of this encoder's.
        """
        if text == AUTO:
            if not self.has_auto:
                raise ValueError("auto needs a tuned index; run: matvit tune INDEX")
            return AUTO
        return str(self.opened.retriever.encoder.submodel(text))


def begin(shown: Shown, name: str) -> list[str]:
    """Set up a visit, or follow the address if it has changed; return what is wrong with it.

    Args:
        shown: The page.
        name: Of the index.
    """
    state = st.session_state
    if "sizes" not in state:
        state.sizes, state.pick, state.k = list(shown.trained), None, _FEW_HITS
        state.asked, state.upload, state.turn = int(shown.opened.index.ids[0]), None, 0
        if shown.recommended is not None:
            use(shown, shown.recommended)
        if shown.has_auto:
            state.sizes = [*state.sizes, AUTO]
    state.sizes = [each for each in state.sizes if _resolves(shown, each)]
    if state.pick is not None and not _resolves(shown, state.pick):
        state.pick = None
    for key in list(state):  # else Streamlit forgets what is not drawn: the other tabs
        if key in _REMEMBERED or str(key).startswith("block-"):
            state[key] = state[key]
    params = _address()
    if params == state.get("address"):
        return []
    link, wrong = read_link(
        params, name, has_image=lambda number: _has(shown, number), resolve=shown.resolve
    )
    follow(shown, link)
    return wrong


def follow(shown: Shown, link: Link) -> None:
    """Show what a link says."""
    state = st.session_state
    if link.query is not None:
        state.asked, state.upload = link.query, None
    if link.k is not None:
        state.k = link.k
    if link.submodels:
        mixes = [each for each in link.submodels if each not in (*shown.trained, AUTO)]
        if mixes:
            use(shown, mixes[-1])
        state.sizes = list(link.submodels)


def write_address(name: str) -> None:
    """Bring the address up to what is shown; names in it that are not ours stay.

    Args:
        name: Of the index.
    """
    state = st.session_state
    link = Link(
        index=name,
        query=None if state.upload is not None else state.asked,
        submodels=tuple(state.sizes),
        k=state.k,
    )
    wanted = write_link(link)
    others = {each: values for each, values in _address().items() if each not in NAMES}
    state.address = {**others, **wanted}
    if _address() != state.address:
        st.query_params.from_dict(state.address)


def offered(shown: Shown) -> list[str]:
    """Submodels that can be switched on and off: the trained sizes, the pick, and `auto`."""
    more = [each for each in st.session_state.sizes if each != AUTO]
    pick = [st.session_state.pick] if st.session_state.pick else []
    auto = [AUTO] if shown.has_auto else []
    return list(dict.fromkeys([*shown.trained, *more, *pick, *auto]))


def query(shown: Shown) -> Query:
    """What is asked with.

    Raises:
        OSError: If its file is gone.
        ValueError: If it is no longer what was indexed.
    """
    state = st.session_state
    if state.upload is not None:
        upload: Query = state.upload
        return upload
    if not _has(shown, state.asked):  # it was removed meanwhile
        state.asked = int(shown.opened.index.ids[0])
    return stored_query(shown.opened.index, state.asked)


def ask(number: int) -> None:
    """Ask with an image of the index."""
    st.session_state.asked, st.session_state.upload = number, None
    st.session_state.view = SEARCH


def ask_any(shown: Shown) -> None:
    """Ask with some other image of the index."""
    ids = shown.opened.index.ids
    number = int(random.choice(ids))  # noqa: S311
    if number == st.session_state.asked:
        number = int(ids[(int(shown.opened.index.rows_of(number)) + 1) % len(ids)])  # type: ignore[arg-type]
    ask(number)


def take_upload() -> None:
    """Ask with what was just uploaded or pasted, and empty the uploader for the next."""
    state = st.session_state
    sent = state.get(f"upload-{state.turn}")
    if sent is None:
        return
    try:
        state.upload = uploaded_query(sent.name, sent.getvalue())
    except ValueError as error:
        state.refused = f"{plain(sent.name)}: {plain(error)}"
    state.turn += 1


def use(shown: Shown, submodel: str) -> None:
    """Make a submodel the pick: it is shown, and the pick before it no longer."""
    state = st.session_state
    kept = [each for each in state.sizes if each != state.pick or each in shown.trained]
    state.sizes = kept if submodel in kept else [*kept, submodel]
    state.pick = submodel
    for block, size in enumerate(blocks_of(shown.opened.retriever.encoder.submodel(submodel))):
        state[f"block-{block}"] = size.value
    unit = budget_unit(shown)
    point = measured(shown.frontier, submodel)
    if shown.frontier is not None and unit is not None and point is not None:
        state.budget = budget_range(shown.frontier, unit).clip(spent(point, unit))


def budget_unit(shown: Shown) -> Unit | None:
    """What the budget is given in; None if nothing was measured."""
    if shown.frontier is None:
        return None
    unit = st.session_state.get("unit") or Unit.GMACS
    return Unit(unit) if unit in units(shown.frontier) else Unit.GMACS


def _address() -> dict[str, list[str]]:
    return {name: st.query_params.get_all(name) for name in st.query_params}


def _resolves(shown: Shown, text: str) -> bool:
    try:
        shown.resolve(text)
    except ValueError:
        return False
    return True


def _has(shown: Shown, number: int) -> bool:
    try:
        shown.opened.index.rows_of(number)  # type: ignore[arg-type]
    except KeyError:
        return False
    return True
