"""Evaluating on somebody's own queries while they look elsewhere, and taking the numbers home."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import streamlit as st

from app.options import parse_sizes
from app.page import chart
from app.page.disagree import draw_disagreements
from app.page.looks import plain, spoken
from app.page.opened import Opened
from app.page.tune import draw_tune
from app.page.visit import Shown
from app.page.work import StoppedError, Work
from indexing import Corpus, DecodedBatch, Decoders
from matvit import Preprocess
from retrieval import (
    Evaluation,
    OperatingPoint,
    ParetoFrontier,
    Retriever,
    evaluate_queries,
    format_conditions,
    measure_speed,
    plot,
    to_csv,
)

_LOOK_EVERY_S = 1.0
_BATCH, _TIMED = 128, 50
_PIXELS_PER_INCH = 200


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What an evaluation found.

    Attributes:
        queries: What was asked with, as it was typed.
        generation: Of the index that was asked.
        frontier: What was measured.
        evaluation: The same query by query.
        corpus: The queries.
    """

    queries: str
    generation: int
    frontier: ParetoFrontier
    evaluation: Evaluation
    corpus: Corpus

    @cached_property
    def downloads(self) -> list[tuple[str, str, bytes]]:
        """The files of a report: name, media type and content of each; made once."""
        frontier = self.frontier
        return [
            ("report.csv", "text/csv", to_csv(frontier).encode()),
            ("report.json", "application/json", frontier.to_json().encode()),
            ("frontier.png", "image/png", _picture(frontier)),
        ]

    @property
    def unreadable(self) -> int:
        """Queries that could not be decoded."""
        conditions = self.frontier.conditions
        return 0 if conditions is None else conditions.unreadable


@dataclass(frozen=True, eq=False)
class WatchedCorpus(Corpus):
    """A corpus that tells how far it has been read.

    Attributes:
        tell: Called with the share that has been read and used.
    """

    tell: Callable[[float], None] = field(kw_only=True)

    @classmethod
    def watch(cls, corpus: Corpus, tell: Callable[[float], None]) -> WatchedCorpus:
        """Return the same images as ones that are watched."""
        return cls(corpus.source, corpus.positions, corpus.labelled, tell=tell)

    def decode(
        self, preprocess: Preprocess, decoders: Decoders = Decoders()
    ) -> Iterator[DecodedBatch]:
        """Decode in small batches, and tell after each when the next one is asked for."""
        small = replace(decoders, batch_size=min(decoders.batch_size, _BATCH))
        done = 0
        for batch in super().decode(preprocess, small):
            yield batch
            done += batch.images
            self.tell(done / len(self))


def judge(
    opened: Opened, queries: str, sizes: str, k: int, tell: Callable[[float], None]
) -> Judged:
    """Ask an index with every image of a folder, at several sizes.

    Args:
        opened: The index and its encoder.
        queries: A folder of images, Parquet files or tar archives.
        sizes: Submodels separated by commas; `mix` stands for a spread of them.
        k: Hits that recall and overlap look at.
        tell: Called with the share of the queries that has been asked.

    Raises:
        FileNotFoundError: If there is nothing at `queries`.
        ValueError: If a size is unknown, or no query can be read.
    """
    if not queries.strip():
        raise ValueError("a folder of query images is needed")
    chosen = parse_sizes(sizes, opened.retriever.encoder.config)
    corpus = Corpus.open(queries.strip())
    found = evaluate_queries(
        opened.retriever, WatchedCorpus.watch(corpus, tell), chosen, k=k, latency_queries=0
    )
    with opened.answers.alone():  # else visitors would be timed along, and so would this for them
        points = _timed(opened.retriever, corpus, list(found.frontier))
    return Judged(
        queries=queries.strip(),
        generation=opened.info["generation"],
        frontier=ParetoFrontier(points, conditions=found.frontier.conditions),
        evaluation=found,
        corpus=corpus,
    )


def _timed(
    retriever: Retriever, corpus: Corpus, points: list[OperatingPoint]
) -> list[OperatingPoint]:
    """Time the submodels of points on the first queries that can be read."""
    encoder = retriever.encoder
    batches = corpus.decode(encoder.preprocess, Decoders(batch_size=_TIMED))
    pixels = next(batch.pixels for batch in batches if batch.records)
    submodels = [encoder.submodel(point.submodel) for point in points]
    speeds = measure_speed(encoder, submodels, pixels, latency_queries=_TIMED)
    return [replace(point, **speed._asdict()) for point, speed in zip(points, speeds, strict=True)]


def results_table(frontier: ParetoFrontier) -> pd.DataFrame:
    """Every point as a row; what was not measured is left out."""
    rows = [
        {
            "submodel": spoken(point.submodel),
            "GMACs": round(point.macs / 1e9, 3),
            "of full": point.macs_fraction,
            "hit_rate@1": point.hit_rate_at_1,
            "retained": point.retained_hit_rate_at_1,
            "map@r": point.map_at_r,
            f"overlap@{point.k}": point.overlap_at_k,
            "ms, one image": point.latency_ms_p50,
            "best": "★" if point.pareto else "",
        }
        for point in frontier
    ]
    return pd.DataFrame(rows).dropna(axis="columns", how="all")


def _picture(frontier: ParetoFrontier) -> bytes:
    caption = "" if frontier.conditions is None else format_conditions(frontier.conditions)
    stream = io.BytesIO()
    with mpl.rc_context():
        plot(frontier, caption=caption).savefig(stream, format="png", dpi=_PIXELS_PER_INCH)
    return stream.getvalue()


def draw_evaluate(shown: Shown) -> None:
    """Draw the form, and what came of it."""
    st.subheader("Measure every size on your own queries", anchor=False)
    st.markdown(
        "Name a folder on this machine with images that are **not** in the index. With classes "
        "(one folder each) hits are judged right or wrong; without, by how many of the full "
        "encoder's hits a smaller one finds too."
    )
    with st.form("evaluate"):
        queries = st.text_input("Folder of query images", placeholder="/home/me/queries")
        left, right = st.columns([3, 1])
        sizes = left.text_input(
            "Sizes",
            "S,M,L,XL,mix",
            help="`mix` adds a dozen Mix'n'Match submodels; `S~` merges tokens; "
            "`S:int8` is S in 8 bits",
        )
        k = right.number_input("Hits that count", 1, 100, 10)
        wanted = st.form_submit_button("Evaluate", type="primary")
    if wanted and "judging" not in st.session_state:
        opened = shown.opened
        st.session_state.judging = Work(lambda tell: judge(opened, queries, sizes, int(k), tell))
    if "judging" in st.session_state:
        _watch()
    if error := st.session_state.pop("judging_error", None):
        _draw_error(error)
    judged = st.session_state.get("judged")
    if judged is not None:
        _draw_results(shown, judged)
        draw_disagreements(judged.evaluation, judged.corpus)
    draw_tune(shown)


def take_judged() -> None:
    """Go by what an evaluation found, if one has ended since."""
    state = st.session_state
    work = state.get("judging")
    if work is None or not work.done:
        return
    del state.judging
    if work.found is not None:
        state.judged = work.found
    else:
        state.judging_error = work.error


def _draw_error(error: Exception) -> None:
    if isinstance(error, StoppedError):
        st.info("Stopped.")
    else:
        st.error(plain(error))


@st.fragment(run_every=_LOOK_EVERY_S)
def _watch() -> None:
    """Say how far the evaluation is, and draw the whole page again at its end."""
    work = st.session_state.get("judging")
    if work is None or work.done:
        st.rerun()
    told = f"Asking … {work.told:.0%}" if work.told < 1 else "Timing every size …"
    st.progress(work.told, f"{told} You can look at the other tabs meanwhile.")
    st.button("Stop", key="stop-judging", on_click=work.stop, disabled=work.stopping)


def _draw_results(shown: Shown, judged: Judged) -> None:
    frontier = judged.frontier
    st.subheader(f"Results for {plain(Path(judged.queries).name)}", anchor=False)
    if judged.generation != shown.opened.info["generation"]:
        st.warning("The index has changed since; evaluate again to see what it finds now.")
    if judged.unreadable:
        st.warning(f"{judged.unreadable:,} queries could not be read and were left out.")
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.dataframe(
            results_table(frontier),
            hide_index=True,
            column_config={
                "of full": st.column_config.NumberColumn(format="percent"),
                "retained": st.column_config.NumberColumn(format="percent"),
                "ms, one image": st.column_config.NumberColumn(format="%.1f"),
            },
        )
    with right:
        st.altair_chart(
            chart.frontier_chart(frontier, height=320), width="stretch", key="judged-chart"
        )
    if frontier.conditions is not None:
        st.caption(plain(format_conditions(frontier.conditions)))
    with st.container(horizontal=True):
        for name, media, content in judged.downloads:
            st.download_button(
                name, content, file_name=name, mime=media, icon=":material/download:",
                on_click="ignore",
            )  # fmt: skip
