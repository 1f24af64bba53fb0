"""One query, several submodels: their answers held against the full encoder's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from app.options import AUTO
from app.page.opened import Opened, Refined
from app.page.pictures import Picture, Query
from matvit import Granularity, MatViTConfig, Submodel, count_macs, count_params
from retrieval import Hit, Hits


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a submodel costs.

    Attributes:
        submodel: The submodel, as text.
        macs: Multiply-accumulates of embedding one image.
        fraction: The same as a share of the full encoder's.
        params: Its parameters.
        widths: Of each block, as a share of all its hidden units.
        merged: Patch tokens that are merged into others.
    """

    submodel: str
    macs: int
    fraction: float
    params: int
    widths: tuple[float, ...]
    merged: int = 0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One hit as the page shows it.

    Attributes:
        hit: The hit.
        change: Places it moved up (positive) or down against the full encoder's answer; None if
            the full encoder did not return it.
        right: Whether its label is the query's; None where either is unknown.
        picture: Its thumbnail.
    """

    hit: Hit
    change: int | None
    right: bool | None
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The answer of one submodel, next to the full encoder's.

    Attributes:
        title: What was asked for, as people write it: a submodel or `auto`.
        answer: What was found, the query itself left out.
        fraction: What it cost, as a share of the full encoder's multiply-accumulates.
        wanted: Hits that the full encoder returns.
        cells: The hits of the answer.
        nothing: Why there are none, or why those are there that a cut-off might hide.
    """

    title: str
    answer: Hits
    fraction: float
    wanted: int
    cells: tuple[Cell, ...]
    nothing: str = ""

    @property
    def fetch_ms(self) -> float:
        """Milliseconds it took to read the files of the hits, when first read."""
        return sum(cell.picture.fetch_ms for cell in self.cells)

    @property
    def total_ms(self) -> float:
        """Milliseconds from a decoded query to pictures."""
        return self.answer.encode_ms + self.answer.search_ms + self.fetch_ms

    @property
    def shared(self) -> int:
        """Hits that the full encoder returns too."""
        return sum(cell.change is not None for cell in self.cells)

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
        merged=sum(submodel.merged),
    )


def compare(
    opened: Opened,
    query: Query,
    submodels: Sequence[str],
    k: int,
    *,
    refined: Refined = Refined(),
    min_score: float | None = None,
    before_each: Callable[[], object] = lambda: None,
) -> list[Strip]:
    """Ask with several submodels, the cheapest first, `auto` last.

    A query that is an image of the index is not among its own hits.

    Args:
        opened: Who is asked.
        query: The query.
        submodels: As people write them; `auto` chooses for itself.
        k: Hits of each.
        refined: What was added to the query. Several images together leave `auto` out.
        min_score: Cut-off on the full encoder's scale, on which scores are told then; None for
            scores as they are.
        before_each: Called before each is asked; what it raises ends the comparison.

    Raises:
        ValueError: If the query cannot be read or a submodel is not one of the encoder's.
    """
    asked = k + (query.id is not None)  # it finds itself
    before_each()
    full = _others(opened.answers.to(query, opened.full, asked, refined), query, k)
    full, _ = _cut(opened, full, min_score)
    strips = []
    alone = not refined.asks_with_several
    for name in [name for name in submodels if name != AUTO or alone] or [opened.full]:
        before_each()
        found = _others(opened.answers.to(query, name, asked, refined), query, k)
        answer, nothing = _cut(opened, found, min_score)
        strip = _strip(opened, name, answer, full, query.label)
        strips.append(replace(strip, nothing=nothing))
    return sorted(strips, key=lambda strip: (strip.title == AUTO, strip.answer.macs, strip.title))


def scale_of(strips: Sequence[Strip]) -> tuple[float, float]:
    """The lowest and the highest score of all strips: one scale for all of them."""
    scores = [cell.hit.score for strip in strips for cell in strip.cells]
    return (min(scores), max(scores)) if scores else (0.0, 1.0)


def _others(answer: Hits, query: Query, k: int) -> Hits:
    """Drop the query itself and count the ranks again."""
    others = [hit for hit in answer if hit.id != query.id][:k]
    ranked = tuple(replace(hit, rank=rank) for rank, hit in enumerate(others, start=1))
    return replace(answer, hits=ranked)


def _cut(opened: Opened, answer: Hits, min_score: float | None) -> tuple[Hits, str]:
    """Keep what reaches a cut-off, and say why if that is nothing, or if it cannot be told."""
    if not answer:
        return answer, "Nothing passes the filter."
    if min_score is None:
        return answer, ""
    tuning = opened.tuned.tuning
    if answer.submodel != opened.full:
        if tuning is None or answer.submodel not in tuning.scales:
            return answer, "Not cut: what its scores stand for was not measured by tuning."
        answer = tuning.on_full_scale(answer)
    kept = answer.at_least(min_score)
    if kept:
        return kept, ""
    return kept, f"No good match: the best has {answer[0].score:.3f}, below {min_score:.3f}."


def _strip(opened: Opened, title: str, answer: Hits, full: Hits, label: str | None) -> Strip:
    places = {hit.id: hit.rank for hit in full}
    return Strip(
        title=title,
        answer=answer,
        fraction=answer.macs / opened.info["encoder"]["macs"],
        wanted=len(full),
        cells=tuple(
            Cell(
                hit=hit,
                change=places[hit.id] - hit.rank if hit.id in places else None,
                right=None if label is None or hit.label is None else hit.label == label,
                picture=opened.pictures.of(hit.id),
            )
            for hit in answer
        ),
    )
