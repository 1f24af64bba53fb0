"""What one visitor of the page wants to see: nothing here is shared."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.uploaded_file_manager import UploadedFile

from app.options import AUTO
from app.page import chart
from app.page.link import NAMES, Link, read_link, write_link
from app.page.looks import plain
from app.page.measured import Measured, Range, Unit, budget_range, found_in, spent, units
from app.page.opened import Opened, Refined
from app.page.pictures import Query, stored_query, uploaded_query
from indexing import Where
from matvit import Granularity, MatViTConfig, Submodel
from retrieval import ParetoFrontier

SEARCH, CHOOSE, CORPUS, EVALUATE = "Search", "Choose a size", "Corpus", "Evaluate"
MAP = "Map"
_FEW_HITS = 6
_REMEMBERED = (
    "sizes", "k", "unit", "budget", "failures", "min_score", "inside", "classes", "collapse",
    "near",
)  # fmt: skip
_SAID = re.compile(r"([=+-])(\d{1,18})")
_MOST_MARKS = 8


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The page that a visitor looks at.

    Attributes:
        opened: The index and its encoder.
        found: What was measured, if anything.
    """

    opened: Opened
    found: Measured

    @property
    def frontier(self) -> ParetoFrontier | None:
        """What was measured, to be drawn and told."""
        return self.found.frontier

    @property
    def recommended(self) -> str | None:
        """The submodel that tuning recommends, if it did."""
        return self.opened.tuned.recommended

    @property
    def has_choice(self) -> bool:
        """Whether there is more than one submodel to choose from."""
        return bool(self.opened.retriever.encoder.submodel(None).is_full)

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
    """Set up a visit, or go back or forward in it; return what is wrong with the address.

    Only then is the address followed. With every click the browser sends the one that it knows,
    and whoever clicks fast is ahead of it.

    Args:
        shown: The page.
        name: Of the index.
    """
    state, is_new = st.session_state, "sizes" not in st.session_state
    if is_new:
        state.sizes, state.pick, state.k = list(shown.trained), None, _FEW_HITS
        state.asked, state.upload = int(shown.opened.index.ids[0]), None
        state.turn, state.chart_turn, state.address = 0, 0, {}
        state.more, state.less = (), ()
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
    if not is_new and not _went_back_or_forward():
        return []
    link, wrong = read_link(
        _address(), name, has_image=lambda number: _has(shown, number), resolve=shown.resolve
    )
    follow(shown, link)
    return wrong


def follow(shown: Shown, link: Link) -> None:
    """Show what a link says."""
    state = st.session_state
    if link.query is not None and (state.upload is not None or link.query != state.asked):
        ask_with(link.query, None)
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
    said, state.address = state.address, {**others, **wanted}
    if not _address() == said == state.address:  # the browser may not have heard what was said
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
        ask_with(int(shown.opened.index.ids[0]), None)
    return stored_query(shown.opened.index, state.asked)


def ask(number: int) -> None:
    """Ask with an image of the index."""
    ask_with(number, None)
    st.session_state.view = SEARCH


def ask_with(number: int, upload: Query | None) -> None:
    """Take another query: what was marked to go with the one before is marked no longer."""
    state = st.session_state
    state.asked, state.upload, state.more, state.less = number, upload, (), ()


def mark(number: int, sign: str) -> None:
    """Have answers be like an image too, or unlike it; the same mark again takes it back.

    Args:
        number: Id of the image.
        sign: `+` or `-`.
    """
    state = st.session_state
    had = number in (state.more if sign == "+" else state.less)
    state.more = tuple(each for each in state.more if each != number)
    state.less = tuple(each for each in state.less if each != number)
    if had:
        return
    if len(state.more) + len(state.less) >= _MOST_MARKS:
        state.refused = f"At most {_MOST_MARKS} images can be marked; take one back first."
    elif sign == "+":
        state.more = (*state.more, number)
    else:
        state.less = (*state.less, number)


def take_said(shown: Shown) -> None:
    """Ask with an image, or mark it, as the script of the page says: its buttons are plain HTML."""
    said = _SAID.fullmatch(st.session_state.said)
    st.session_state.said = ""
    if said is None or not _has(shown, int(said[2])):
        return
    if said[1] == "=":
        ask(int(said[2]))
    else:
        mark(int(said[2]), said[1])


def refined(shown: Shown) -> Refined:
    """What was added to the query.

    Raises:
        ValueError: If the pattern is none.
    """
    state = st.session_state
    pattern = (state.get("inside") or "").strip()
    return Refined(
        more=tuple(each for each in state.more if _has(shown, each)),
        less=tuple(each for each in state.less if _has(shown, each)),
        where=Where(
            inside=(pattern,) if pattern else (),
            labels=tuple(state.get("classes") or ()),
        ),
        collapse=bool(state.get("collapse")),
    )


def min_score() -> float | None:
    """The cut-off, if there is one."""
    return st.session_state.get("min_score") or None


def ask_any(shown: Shown) -> None:
    """Ask with some other image of the index."""
    ids = shown.opened.index.ids
    number = int(random.choice(ids))  # noqa: S311
    if number == st.session_state.asked:
        number = int(ids[(shown.opened.row_of(number) + 1) % len(ids)])
    ask(number)


def take_upload(shown: Shown) -> None:
    """Ask with what was just uploaded or pasted, and empty the uploader for the next.

    A tab that does not show what a query finds makes room for the first one.
    """
    state = st.session_state
    sent = state.get(f"upload-{state.turn}")
    if sent is None:
        return
    try:
        ask_with(state.asked, uploaded_query(sent.name, sent.getvalue()))
    except ValueError as error:
        state.refused = f"{plain(sent.name)}: {plain(error)}"
    if state.get("view") != CHOOSE or not shown.has_choice:
        state.view = SEARCH
    state.turn += 1
    _let_go(sent)


def use(shown: Shown, submodel: str) -> None:
    """Make a submodel the pick: it is shown, and the pick before it no longer.

    A chart on which another was clicked starts anew: a second click on what it holds for clicked
    already would tell nothing.
    """
    state = st.session_state
    kept = [each for each in state.sizes if each != state.pick or each in shown.trained]
    state.sizes = kept if submodel in kept else [*kept, submodel]
    state.pick = submodel
    for block, size in enumerate(blocks_of(shown.opened.retriever.encoder.submodel(submodel))):
        state[f"block-{block}"] = size.value
    state["block-merge"] = bool(shown.opened.retriever.encoder.submodel(submodel).merged)
    if chart.clicked(state.get(chart_key())) not in (None, submodel):
        state.chart_turn += 1
    fit_budget(shown)


def chart_key() -> str:
    """What the chart of the frontier is called, until it starts anew."""
    return f"frontier-{st.session_state.chart_turn}"


def fit_budget(shown: Shown) -> None:
    """Set the budget to what the pick costs, if that was measured."""
    unit = budget_unit(shown)
    if unit is None:
        return
    point = found_in(shown.found.bought_from(unit), st.session_state.pick)
    if point is not None:
        st.session_state.budget = budget_limits(shown, unit).clip(spent(point, unit))


def budget_limits(shown: Shown, unit: Unit) -> Range:
    """From where to where a budget makes a difference."""
    found = shown.found.bought_from(unit)
    assert found is not None
    return budget_range(found, unit)


def budget_unit(shown: Shown) -> Unit | None:
    """What the budget is given in; None if nothing was measured."""
    if shown.frontier is None:
        return None
    unit = st.session_state.get("unit") or Unit.GMACS
    return Unit(unit) if unit in units(shown.frontier) else Unit.GMACS


def blocks_of(submodel: Submodel) -> list[Granularity]:
    """The trained size of each block; of a width between two, the smaller one's."""
    sizes = list(Granularity)
    return [
        max((size for size in sizes if size.width(submodel.hidden_dim) <= width), default=sizes[0],
            key=sizes.index)
        for width in submodel.widths
    ]  # fmt: skip


def from_blocks(
    config: MatViTConfig, sizes: Sequence[Granularity], like: Submodel | None = None
) -> Submodel:
    """Put a submodel together, one size per block.

    Args:
        config: Architecture.
        sizes: Of each block.
        like: Whose tokens are merged; None for none.
    """
    widths = tuple(size.width(config.hidden_dim) for size in sizes)
    if like is None:
        return Submodel(widths, config.hidden_dim)
    return Submodel(widths, config.hidden_dim, merged=like.merged, patches=like.patches)


def _address() -> dict[str, list[str]]:
    return {name: st.query_params.get_all(name) for name in st.query_params}


def _went_back_or_forward() -> bool:
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def _let_go(sent: UploadedFile) -> None:
    """Have the server forget a file that was taken; else it is kept as long as the visit.

    Streamlit lets go of a file when its uploader is emptied, and this one is never drawn again.
    """
    context = get_script_run_ctx()
    remove = getattr(context and context.uploaded_file_mgr, "remove_file", None)
    if context is not None and remove is not None:
        remove(context.session_id, sent.file_id)


def _resolves(shown: Shown, text: str) -> bool:
    try:
        shown.resolve(text)
    except ValueError:
        return False
    return True


def _has(shown: Shown, number: int) -> bool:
    try:
        shown.opened.row_of(number)
    except KeyError:
        return False
    return True
