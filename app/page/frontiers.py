"""Which measurement the page goes by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.options import one_line
from app.page.choice import Unit
from app.page.opened import Opened
from app.page.plain import plain
from app.page.tuned import Tuned
from retrieval import Conditions, ParetoFrontier, format_conditions


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A frontier and where it comes from.

    Attributes:
        frontier: What was measured; None if nothing was.
        source: Where it comes from, in a few words.
        problem: Why a measurement that exists is not shown, or how far it still holds.
        tuned: What tuning stored, if the frontier is its own.
    """

    frontier: ParetoFrontier | None = None
    source: str = ""
    problem: str | None = None
    tuned: Tuned | None = None

    @property
    def conditions(self) -> str:
        """Who asked what of whom, and where."""
        found = None if self.frontier is None else self.frontier.conditions
        return "" if found is None else format_conditions(found)

    def bought_from(self, unit: Unit) -> ParetoFrontier | None:
        """What a budget chooses from; of a tuned index what `Tuning.choose` goes by.

        So the page and the command pick the same; `frontier` tells what other queries measured.
        """
        if self.tuned is None:
            return self.frontier
        return self.tuned.by_ms if unit is Unit.MS else self.tuned.by_gmacs


def find_measured(opened: Opened, report: Path, own: ParetoFrontier | None = None) -> Measured:
    """Choose what was measured last and nearest: just now, by tuning, or in a report.

    Args:
        opened: The index and its encoder.
        report: `report.json` of an evaluation; it need not exist.
        own: What was measured on the page itself.
    """
    stored = opened.tuned
    if own is not None and own.conditions is not None and _is_of(own.conditions, opened):
        return Measured(frontier=own, source="measured on this page")
    if stored.frontier is not None:
        source = "measured on this index by `matvit tune`"
        return Measured(
            frontier=stored.frontier, source=source, problem=stored.problem, tuned=stored
        )
    if not report.exists():
        return Measured(problem=stored.problem)
    try:
        frontier = ParetoFrontier.from_json(report.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return Measured(problem=f"{report}: {one_line(error)}")
    if frontier.conditions is None or not _is_of(frontier.conditions, opened):
        return Measured(
            problem=f"{report} was measured on another index or encoder; it is not shown."
        )
    source = f"from {plain(f'{report.parent.name}/{report.name}')}"
    return Measured(frontier=frontier, source=source)


def _is_of(measured: Conditions, opened: Opened) -> bool:
    """Whether a report is about the encoder and the index that are open."""
    encoder = opened.retriever.encoder
    # A converted encoder has the fingerprint of its original, but other small sizes. Of a report
    # that says nothing of their weights, assume that the encoder was not converted.
    weights = measured.weights or measured.fingerprint
    return (measured.encoder, measured.fingerprint, weights, measured.images) == (
        encoder.name,
        encoder.fingerprint,
        encoder.weights_fingerprint,
        len(opened.index),
    )
