"""What the page shows, as pure functions of what `retrieval` returns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import pandas as pd
from PIL import Image

from matvit.preprocess import upright_rgb
from retrieval import Hits, ParetoFrontier, Retriever

TRAINED = ("S", "M", "L", "XL")
THUMBNAIL = 160
_OURS, _MUTED, _CHOSEN, _NAME = "#0f9488", "#94a3b8", "#d97706", "#7c8798"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One hit as the page shows it.

    Attributes:
        id: Its number in the index.
        path: Its name in the index.
        score: Cosine with the query.
        rank: Place in this answer, from 1.
        change: Places it moved up (positive) or down against the full encoder's answer; None if
            the full encoder did not return it.
        right: Whether its label is the query's; None where either is unknown.
    """

    id: int
    path: str
    score: float
    rank: int
    change: int | None
    right: bool | None

    @property
    def caption(self) -> str:
        """Rank, score and rank change in a few characters."""
        if self.change is None:
            moved = "new"
        else:
            moved = {0: "="}.get(
                self.change, f"{'▲' if self.change > 0 else '▼'}{abs(self.change)}"
            )
        mark = {True: " :green[✓]", False: " :red[✗]", None: ""}[self.right]
        return f"{self.rank} · {self.score:.3f} {moved}{mark}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """The answer of one encoder size, next to the full encoder's.

    Attributes:
        title: The submodel, as people write it.
        gmacs: Billions of multiply-accumulates of embedding the query.
        fraction: The same as a share of the full encoder's.
        encode_ms: Milliseconds it took to embed the query.
        search_ms: Milliseconds it took to search.
        overlap: Share of the full encoder's hits that this size returns too.
        cells: The hits.
    """

    title: str
    gmacs: float
    fraction: float
    encode_ms: float
    search_ms: float
    overlap: float
    cells: tuple[Cell, ...]


def compare(
    retriever: Retriever, query: bytes, sizes: Sequence[str], k: int, label: str | None = None
) -> list[Column]:
    """Ask with several encoder sizes and hold each answer against the full encoder's.

    Args:
        retriever: An index and its encoder.
        query: The bytes of an image file.
        sizes: Submodels, as people write them.
        k: Hits per size.
        label: Class of the query, where it is known.

    Raises:
        ValueError: If the image cannot be read or a size is not one of the encoder's.
    """
    full_macs = retriever.index.info()["encoder"]["macs"]
    full = retriever.search(query, None, k)
    answers = [
        full if size == full.submodel else retriever.search(query, size, k) for size in sizes
    ]
    return [_column(answer, full, label, full_macs) for answer in answers]


def _column(answer: Hits, full: Hits, label: str | None, full_macs: int) -> Column:
    place = {hit.id: hit.rank for hit in full}
    cells = tuple(
        Cell(
            id=hit.id,
            path=hit.path,
            score=hit.score,
            rank=hit.rank,
            change=place[hit.id] - hit.rank if hit.id in place else None,
            right=None if label is None or hit.label is None else hit.label == label,
        )
        for hit in answer
    )
    return Column(
        title=answer.submodel,
        gmacs=answer.macs / 1e9,
        fraction=answer.macs / full_macs,
        encode_ms=answer.encode_ms,
        search_ms=answer.search_ms,
        overlap=sum(cell.id in place for cell in cells) / max(1, len(full)),
        cells=cells,
    )


def thumbnail(data: bytes, side: int = THUMBNAIL) -> bytes:
    """Shrink or enlarge an image file to a small PNG, so that pages stay light."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (2 * side, 2 * side))
        small = upright_rgb(image)
    scale = side / max(small.size)
    size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def frontier_chart(frontier: ParetoFrontier, chosen: Sequence[str] = ()) -> alt.LayerChart:
    """Recall against compute: every measured submodel, the Pareto line, the sizes in use."""
    table = _frontier_table(frontier, chosen)
    x = alt.X("gmacs:Q", title="GMACs per query", scale=alt.Scale(zero=False))
    y = alt.Y("recall:Q", title=frontier.metric, scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("submodel:N"),
        alt.Tooltip("recall:Q", format=".4f", title=frontier.metric),
        alt.Tooltip("gmacs:Q", format=".3f", title="GMACs"),
        alt.Tooltip("fraction:Q", format=".0%", title="of full compute"),
        alt.Tooltip("latency_ms:Q", format=".1f", title="ms, one image"),
    ]
    base = alt.Chart(table).encode(x=x, y=y)
    line = base.transform_filter("datum.pareto").mark_line(color=_OURS, strokeWidth=2)
    colour = alt.condition("datum.chosen", alt.value(_CHOSEN), alt.value(_MUTED))
    points = base.mark_circle(size=90, opacity=1).encode(color=colour, tooltip=tooltip)
    names = base.transform_filter("datum.trained").mark_text(
        dy=-13, fontWeight="bold", fontSize=13, color=_NAME
    )
    return alt.LayerChart(layer=[line, points, names.encode(text="submodel:N")], height=320)


def _frontier_table(frontier: ParetoFrontier, chosen: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "submodel": point.submodel,
            "gmacs": point.macs / 1e9,
            "fraction": point.macs_fraction,
            "recall": frontier.recall(point),
            "latency_ms": point.latency_ms_p50,
            "pareto": bool(point.pareto),
            "trained": point.submodel in TRAINED,
            "chosen": point.submodel in chosen,
        }
        for point in frontier
    )
