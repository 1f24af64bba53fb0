"""One query, several submodels: their answers held against the full encoder's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from app.options import AUTO
from app.page.opened import Opened
from app.page.pictures import Query
from matvit import Granularity, MatViTConfig, Submodel, count_macs, count_params
from retrieval import Hit, Hits, Step


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a submodel costs.

    Attributes:
        submodel: The submodel, as text.
        macs: Multiply-accumulates of embedding one image.
        fraction: The same as a share of the full encoder's.
        params: Its parameters.
        widths: Of each block, as a share of all its hidden units.
    """

    submodel: str
    macs: int
    fraction: float
    params: int
    widths: tuple[float, ...]


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
        label: Its class, where that is known.
        right: Whether its label is the query's; None where either is unknown.
        picture: A JPEG file; None where the original is gone or was changed.
    """

    id: int
    path: str
    score: float
    rank: int
    change: int | None
    label: str | None
    right: bool | None
    picture: bytes | None


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The answer of one submodel, next to the full encoder's.

    Attributes:
        title: What was asked for, as people write it: a submodel or `auto`.
        submodel: What answered.
        macs: Multiply-accumulates of embedding the query.
        fraction: The same as a share of the full encoder's.
        encode_ms: Milliseconds it took to embed the query.
        search_ms: Milliseconds it took to search.
        fetch_ms: Milliseconds it took to read the files of the hits, when first read.
        shared: Hits that the full encoder returns too.
        wanted: Hits that the full encoder returns.
        cells: The hits.
        steps: What `auto` tried, cheapest first; empty for a submodel.
    """

    title: str
    submodel: str
    macs: int
    fraction: float
    encode_ms: float
    search_ms: float
    fetch_ms: float
    shared: int
    wanted: int
    cells: tuple[Cell, ...]
    steps: tuple[Step, ...] = ()

    @property
    def total_ms(self) -> float:
        """Milliseconds from a decoded query to pictures."""
        return self.encode_ms + self.search_ms + self.fetch_ms

    @property
    def right(self) -> int | None:
        """Hits of the query's class; None where no class is known."""
        judged = [cell.right for cell in self.cells if cell.right is not None]
        return sum(judged) if judged else None


def cost_of(config: MatViTConfig, submodel: Submodel) -> Cost:
    """Count what a submodel costs."""
    full = Submodel.uniform(Granularity.XL, depth=config.depth, hidden_dim=config.hidden_dim)
    macs = count_macs(config, submodel)
    return Cost(
        submodel=str(submodel),
        macs=macs,
        fraction=macs / count_macs(config, full),
        params=count_params(config, submodel),
        widths=tuple(width / submodel.hidden_dim for width in submodel.widths),
    )


def compare(
    opened: Opened,
    query: Query,
    submodels: Sequence[str],
    k: int,
    *,
    before_each: Callable[[], object] = lambda: None,
) -> list[Strip]:
    """Ask with several submodels, the cheapest first, `auto` last.

    A query that is an image of the index is not among its own hits.

    Args:
        opened: Who is asked.
        query: The query.
        submodels: As people write them; `auto` chooses for itself.
        k: Hits of each.
        before_each: Called before each is asked; what it raises ends the comparison.

    Raises:
        ValueError: If the query cannot be read or a submodel is not one of the encoder's.
    """
    asked = k + (query.id is not None)  # it finds itself
    before_each()
    full = _others(opened.answers.to(query, opened.full, asked), query, k)
    strips = []
    for name in submodels:
        before_each()
        answer = opened.answers.to(query, name, asked)
        strips.append(_strip(opened, name, _others(answer, query, k), full, query.label))
    return sorted(strips, key=lambda strip: (strip.title == AUTO, strip.macs, strip.title))


def scale_of(strips: Sequence[Strip]) -> tuple[float, float]:
    """The lowest and the highest score of all strips: one scale for all of them."""
    scores = [cell.score for strip in strips for cell in strip.cells]
    return (min(scores), max(scores)) if scores else (0.0, 1.0)


def _others(answer: Hits, query: Query, k: int) -> Hits:
    """Drop the query itself and count the ranks again."""
    others = [hit for hit in answer if hit.id != query.id][:k]
    ranked = tuple(replace(hit, rank=rank) for rank, hit in enumerate(others, start=1))
    return replace(answer, hits=ranked)


def _strip(opened: Opened, title: str, answer: Hits, full: Hits, label: str | None) -> Strip:
    places = {hit.id: hit.rank for hit in full}
    pictures = [opened.pictures.of(hit.id) for hit in answer]
    return Strip(
        title=title,
        submodel=answer.submodel,
        macs=answer.macs,
        fraction=answer.macs / opened.info["encoder"]["macs"],
        encode_ms=answer.encode_ms,
        search_ms=answer.search_ms,
        fetch_ms=sum(picture.fetch_ms for picture in pictures),
        shared=sum(hit.id in places for hit in answer),
        wanted=len(full),
        cells=tuple(
            _cell(hit, places.get(hit.id), label, picture.data)
            for hit, picture in zip(answer, pictures, strict=True)
        ),
        steps=answer.steps,
    )


def _cell(hit: Hit, place: int | None, label: str | None, picture: bytes | None) -> Cell:
    return Cell(
        id=hit.id,
        path=hit.path,
        score=hit.score,
        rank=hit.rank,
        change=None if place is None else place - hit.rank,
        label=hit.label,
        right=None if label is None or hit.label is None else hit.label == label,
        picture=picture,
    )
