"""What is in the index, what could not be read, and what the index is; or how to make one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import pandas as pd
import streamlit as st

from app.demo import INDEX, run_demo
from app.output import readable
from app.page import markup
from app.page.looks import plain
from app.page.visit import Shown
from indexing import Failure, IndexedImages, read_manifest
from matvit import DEFAULT_ENCODER, load_encoder

FAILURES_PER_PAGE = 20

_SAMPLED, _COLUMNS = 24, 12
_ONE_AT_A_TIME = Lock()


def draw_corpus(shown: Shown) -> None:
    """Draw counts, a sample, failures, and facts about the index."""
    info = shown.opened.info
    numbers = {
        "images": f"{info['images']:,}",
        "not readable": f"{info['failures']:,}",
        "classes": "none" if info["classes"] is None else f"{info['classes']:,}",
        "on disk": bytes_in_words(info["bytes"]),
    }
    with st.grid(len(numbers), min_column_width=150, key="numbers"):
        for name, value in numbers.items():
            st.metric(name, value, border=True)
    _draw_sample(shown)
    left, right = st.columns(2, gap="large")
    with left:
        _draw_failures(shown)
    with right:
        st.subheader("What this index is", anchor=False)
        facts = {name: plain(value) for name, value in facts_of(info)}
        st.table(facts, border="horizontal")


def _draw_sample(shown: Shown) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("Some of the images", anchor=False)
        st.button("Others", icon=":material/shuffle:", key="others", on_click=_draw_lots)
    seed = st.session_state.setdefault("lot", 0)
    index, pictures = shown.opened.index, shown.opened.pictures
    drawn = [
        markup.hit(
            number,
            index.path_of(shown.opened.row_of(number)),
            pictures.of(number),
            place=f"gallery-{number}",
        )
        for number in sample(index, _SAMPLED, seed)
    ]
    st.html(markup.grid(drawn, _COLUMNS))


def _draw_lots() -> None:
    st.session_state.lot += 1


def _draw_failures(shown: Shown) -> None:
    failures = shown.opened.index.failures
    st.subheader("What could not be read", anchor=False)
    if not failures:
        st.caption("Every image of the corpus could be read.")
        return
    reasons = shown.opened.info["failures_by_error"]
    st.caption(", ".join(f"{count:,} {plain(error)}" for error, count in reasons.items()))
    count = pages(failures)
    page = st.session_state.get("failures", 1)
    st.dataframe(failures_table(failures, min(page, count)), hide_index=True, width="stretch")
    if count > 1:
        st.pagination(count, key="failures")


def facts_of(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Describe an index in names and values.

    Args:
        info: What `ImageIndex.info` returns.
    """
    encoder, corpus, calibration = info["encoder"], info["corpus"], info["calibration"]
    told = [
        ("Index", info["path"]),
        ("Corpus", f"{corpus['root']} ({corpus['kind']}, {corpus['images']:,} images)"),
        ("Encoder", f"{encoder['name']}, {encoder['macs'] / 1e9:.3f} GMACs an image"),
        ("Fingerprint of the encoder", encoder["fingerprint"]),
        ("Embeddings", f"{encoder['dim']} numbers each"),
        ("Search", _search(info["kind"], info["factory"], calibration)),
        ("Generation", f"{info['generation']:,}"),
        ("On disk", bytes_in_words(info["bytes"])),
    ]
    if info["removed"]:
        told.append(("Removed, not yet compacted", f"{info['removed']:,} images"))
    if info["staged"]:
        told.append(("Stored by an unfinished addition", f"{info['staged']:,} images"))
    return told


def banner(info: dict[str, Any]) -> str:
    """Say in one sentence how many images are indexed by what, and how many failed."""
    encoder, failures = info["encoder"], info["failures"]
    text = (
        f"**{info['images']:,} images** embedded once at full size by "
        f"**{plain(encoder['name'])}**, "
        f"{encoder['macs'] / 1e9:.2f} GMACs an image. Ask with a smaller part of it."
    )
    if failures == 1:
        return f"{text} One image could not be read and is not in the index."
    if failures:
        return f"{text} {failures:,} images could not be read and are not in the index."
    return text


def bytes_in_words(count: int) -> str:
    """Write a number of bytes as people read it."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def failures_table(failures: Sequence[Failure], page: int) -> pd.DataFrame:
    """The failures of one page, from 1, as a table."""
    first = (page - 1) * FAILURES_PER_PAGE
    shown = failures[first : first + FAILURES_PER_PAGE]
    return pd.DataFrame(
        [tuple(map(readable, (failure.path, failure.error, failure.message))) for failure in shown],
        columns=["image", "error", "reason"],
    )


def pages(failures: Sequence[Failure]) -> int:
    """How many pages the failures fill."""
    return -(-len(failures) // FAILURES_PER_PAGE)


def sample(index: IndexedImages, count: int, seed: int) -> list[int]:
    """Ids of some images of the index, the same ones for the same seed."""
    chosen = random.Random(seed).sample(range(len(index)), min(count, len(index)))  # noqa: S311
    return [int(index.ids[row]) for row in chosen]


def _search(kind: str, factory: str | None, calibration: dict[str, Any] | None) -> str:
    exact = "exact" if calibration is None else "approximate, scores computed again exactly"
    return f"{kind}, {exact}" + (f" ({factory})" if factory and factory != kind else "")


def draw_welcome(demo: Path) -> None:
    """Say how to make an index, and offer to make the demo's.

    Args:
        demo: Folder of the demo.
    """
    st.info("There is no index yet.")
    st.markdown("Make one from your own photos, then open it:")
    st.code("matvit index build photos/ --out photos.index\nmatvit app photos.index", "bash")
    st.markdown("Or begin with places in the photographs that come with scikit-image:")
    if st.button("Build the demo", type="primary"):
        try:
            with st.spinner("Indexing and measuring; this takes about a minute …", show_time=True):
                _build(demo)
        except (ValueError, OSError) as error:
            st.error(plain(error))
            return
        st.rerun()


def is_built(index: Path) -> bool:
    """Whether there is an index, be it a damaged one; a build that was stopped left none."""
    try:
        return read_manifest(index).plan is None
    except FileNotFoundError:
        return False
    except ValueError:
        return True


def _build(demo: Path) -> None:
    """Make the demo, unless another visitor has made it meanwhile: it would be replaced."""
    with _ONE_AT_A_TIME:
        if not is_built(demo / INDEX):
            run_demo(load_encoder(DEFAULT_ENCODER), demo, None, progress=False)
