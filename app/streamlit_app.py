"""The page: one query, several encoder sizes side by side. Started by `matvit app INDEX`."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np
import streamlit as st

from app import panels
from app.console import one_line
from app.demo import run_demo
from app.opening import load_encoder_for
from indexing import ImageIndex
from matvit import checkpoint
from matvit.model import MatViT
from retrieval import Conditions, ParetoFrontier, Retriever

MAX_UPLOAD_BYTES = 20_000_000
DEMO = Path("matvit-demo")


def main() -> None:
    """Draw the page."""
    st.set_page_config("MatViT Retrieval", "🔎", layout="wide")
    st.title("What does a smaller encoder cost you?")
    given = _arguments()
    if given.index is None and not _demo_index().exists():
        _welcome()
        return
    index = given.index or _demo_index()
    try:
        retriever = _retriever(str(index), given.encoder)
    except (ValueError, OSError) as error:
        st.error(one_line(error))
        return
    _banner(retriever.index)
    sizes, k = _choices(retriever)
    report = given.report or _report_beside(index)
    query = _query(retriever.index)
    answers, frontier = st.tabs(["Answers side by side", "Recall against compute"])
    if query is not None:
        with answers:
            _answer(retriever, *query, sizes, k)
    with frontier:
        _frontier(retriever, report, sizes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--index", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--encoder")
    return parser.parse_known_args(sys.argv[1:])[0]


def _demo_index() -> Path:
    return DEMO / "demo.index"


def _report_beside(index: Path) -> Path:
    return index.parent / "report" / "report.json"


@st.cache_resource(show_spinner="Loading encoder and index …")
def _retriever(index: str, encoder: str | None) -> Retriever:
    opened = ImageIndex.open(index)
    retriever = Retriever(load_encoder_for(opened, encoder), opened)
    retriever.warm_up()
    return retriever


@st.cache_data(max_entries=4000, show_spinner=False)
def _thumbnail(_index: ImageIndex, path: str, number: int) -> bytes | None:  # noqa: ARG001
    """Thumbnail of a stored image; None where the file is gone or was changed."""
    try:
        return panels.thumbnail(_index.image_bytes(number))
    except (OSError, ValueError):
        return None


def _welcome() -> None:
    st.info("There is no index yet.")
    st.markdown("Make one from your own photos, then open it:")
    st.code("matvit index build photos/ --out photos.index\nmatvit app photos.index", "bash")
    st.markdown("Or begin with 1,797 handwritten digits that come with scikit-learn:")
    if st.button("Build the demo", type="primary"):
        try:
            with st.spinner("Indexing and measuring; this takes about a minute …"):
                run_demo(MatViT.load(checkpoint.DEFAULT), DEMO, None, progress=False)
        except (ValueError, OSError) as error:
            st.error(one_line(error))
            return
        st.rerun()


def _banner(index: ImageIndex) -> None:
    info = index.info()
    encoder = info["encoder"]
    text = (
        f"**{len(index):,} images** embedded once at full size by **{encoder['name']}** "
        f"({encoder['macs'] / 1e9:.2f} GMACs an image)."
    )
    if info["failures"]:
        text += f" {info['failures']:,} images could not be read and are not in the index."
    st.markdown(text)


def _choices(retriever: Retriever) -> tuple[list[str], int]:
    """Sizes to compare and hits to show."""
    full = str(retriever.encoder.submodel(None))
    offered = list(panels.TRAINED) if full == "XL" else [full]  # an extracted encoder has one
    with st.sidebar:
        sizes = st.multiselect("Encoder sizes", offered, offered)
        mixed = st.text_input("A Mix'n'Match submodel", placeholder="2xS,2xM,2xXL")
        k = st.slider("Hits", 1, 12, 6)
    if mixed:
        try:
            sizes = [*sizes, str(retriever.encoder.submodel(mixed))]
        except ValueError as error:
            st.sidebar.error(one_line(error))
    return list(dict.fromkeys(sizes)) or [full], k


def _query(index: ImageIndex) -> tuple[bytes, str | None] | None:
    """The image to ask with, and its class where that is known."""
    with st.sidebar:
        # A new key empties the uploader: the latest wish counts, be it an upload or a click.
        turn = st.session_state.setdefault("turn", 0)
        uploaded = st.file_uploader("Ask with your own image", key=f"upload-{turn}")
        another = int(random.choice(index.ids))  # noqa: S311
        st.button("Another image of the index", on_click=_ask, args=(another,))
    if uploaded is not None:
        if uploaded.size > MAX_UPLOAD_BYTES:
            st.error(f"The file has {uploaded.size:,} bytes; at most {MAX_UPLOAD_BYTES:,} please.")
            return None
        return uploaded.getvalue(), None
    number = st.session_state.setdefault("asked", int(index.ids[0]))
    try:
        data = index.image_bytes(number)
    except (OSError, ValueError, KeyError) as error:
        st.error(one_line(error))
        return None
    row = int(index.rows_of(np.array(number)))
    names, label = index.class_names, int(index.labels[row])
    return data, names[label] if names and label >= 0 else None


def _answer(
    retriever: Retriever, query: bytes, label: str | None, sizes: list[str], k: int
) -> None:
    """The query, and what each size finds."""
    try:
        seen = retriever.encoder.preprocess.pixels(query)
        columns = panels.compare(retriever, query, sizes, k, label)
    except ValueError as error:
        st.error(f"This cannot be used as a query: {one_line(error)}")
        return
    first, *others = st.columns([1, *[1] * len(columns)])
    with first:
        st.subheader("Query")
        st.image(seen, width=panels.THUMBNAIL, caption="as the encoder sees it")
        if label is not None:
            st.markdown(f"class **{label}**")
    for place, column in zip(others, columns, strict=True):
        with place:
            _draw_column(retriever.index, column)


def _draw_column(index: ImageIndex, column: panels.Column) -> None:
    st.subheader(column.title)
    st.markdown(
        f"{column.gmacs:.3f} GMACs · {column.fraction:.0%} of full  \n"
        f"{column.encode_ms:.1f} ms encode · {column.search_ms:.1f} ms search  \n"
        f"**{column.overlap:.0%}** of the full encoder's hits"
    )
    for cell in column.cells:
        picture = _thumbnail(index, str(index.path), cell.id)
        if picture is None:
            st.caption(f"{cell.path} is gone or has changed")
        else:
            st.image(picture, width=panels.THUMBNAIL)
        st.markdown(cell.caption)
        st.button(
            "Ask with this",
            key=f"{column.title}-{cell.rank}",
            help=cell.path,
            type="tertiary",
            on_click=_ask,
            args=(cell.id,),
        )


def _ask(number: int) -> None:
    st.session_state.asked = number
    st.session_state.turn += 1


def _frontier(retriever: Retriever, report: Path, sizes: list[str]) -> None:
    if not report.exists():
        st.markdown("Measure it on images that are not in the index, then open the page again:")
        st.code("matvit evaluate INDEX --queries IMAGES --submodels S,M,L,XL,mix --out report")
        return
    try:
        frontier = ParetoFrontier.from_json(report.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        st.error(f"{report}: {one_line(error)}")
        return
    measured = frontier.conditions
    if measured is None or not _is_of(measured, retriever):
        st.warning(f"{report} was measured on another index or encoder; it is not shown.")
        return
    st.altair_chart(panels.frontier_chart(frontier, sizes), width="stretch")


def _is_of(measured: Conditions, retriever: Retriever) -> bool:
    """Whether a report is about the encoder and the index that are open."""
    encoder = retriever.encoder
    # A converted encoder has the fingerprint of its original, but other small sizes. Of a report
    # that says nothing of their weights, assume that the encoder was not converted.
    weights = measured.weights or measured.fingerprint
    return (measured.encoder, measured.fingerprint, weights, measured.images) == (
        encoder.name,
        encoder.fingerprint,
        encoder.weights_fingerprint,
        len(retriever.index),
    )


main()
