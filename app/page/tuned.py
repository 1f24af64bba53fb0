"""What tuning stored with an index, as the page needs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

from app.options import one_line
from retrieval import Escalation, ParetoFrontier, Retriever, Tuning, read_tuning

_ONE_AT_A_TIME = Lock()


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was measured on the index's own images.

    Attributes:
        frontier: Every submodel that was kept; None if nothing was stored, or it cannot be read.
        recommended: The submodel to ask with, as text.
        summary: What it saves and what it costs, in one line.
        auto: What a query costs and loses that chooses for itself; None if it cannot.
        problem: A sentence if the index has changed since, or the file is damaged.
        by_gmacs: What a budget in GMACs chooses from, as `Tuning.choose` does: the same
            submodels, but measured on the queries that are used to choose.
        tuning: All of it.
    """

    frontier: ParetoFrontier | None = None
    recommended: str | None = None
    summary: str = ""
    auto: str | None = None
    problem: str | None = None
    by_gmacs: ParetoFrontier | None = None
    tuning: Tuning | None = field(default=None, repr=False, compare=False)

    @cached_property
    def by_ms(self) -> ParetoFrontier | None:
        """What a budget in milliseconds chooses from: `by_gmacs`, timed on this machine."""
        if self.tuning is None:
            return None
        with _ONE_AT_A_TIME:  # what is timed at the same time is timed wrong
            return self.tuning.by_ms()


def read_tuned(retriever: Retriever) -> Tuned:
    """Read what tuning stored; an extracted submodel has no use for it."""
    if not retriever.encoder.submodel(None).is_full:
        return Tuned()
    try:
        found = read_tuning(retriever.index, retriever.encoder)
    except ValueError as error:
        return Tuned(problem=one_line(error))
    if found is None:
        return Tuned()
    return Tuned(
        frontier=found.frontier,
        recommended=found.recommended.submodel,
        summary=found.summary,
        auto=None if found.escalation is None else _describe(found.escalation),
        problem=found.note(retriever.index),
        by_gmacs=found.by_overlap,
        tuning=found,
    )


def _describe(escalation: Escalation) -> str:
    """Say what queries that choose for themselves cost and lose, on average."""
    reported = escalation.reported
    return (
        f"{' → '.join(escalation.ladder)}, as far as a query needs: "
        f"{reported.macs_fraction:.0%} of the compute on average, "
        f"{100 * reported.lost:.1f} points of first hits lost"
    )
