"""What tuning stored with an index, as the page needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retrieval import Hits, ParetoFrontier, Retriever

AUTO = "auto"
"""Asks for a query that chooses its submodel itself."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One submodel that a query of its own choice tried.

    Attributes:
        submodel: The submodel, as text.
        macs: Multiply-accumulates that it added.
        confidence: How sure the index was of the answer.
    """

    submodel: str
    macs: int
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was measured on the index's own images.

    Attributes:
        frontier: Every submodel that was measured.
        recommended: The submodel to ask with, as text.
        summary: What it saves and what it costs, in one line.
        note: A sentence if the index has changed since.
    """

    frontier: ParetoFrontier
    recommended: str
    summary: str
    note: str | None


def tuned(retriever: Retriever) -> Tuned | None:
    """Read what tuning stored; None if the index was never tuned for this encoder."""
    found: Any = getattr(retriever, "tuning", None)
    if found is None:
        return None
    return Tuned(
        frontier=found.frontier,
        recommended=str(found.recommended.submodel),
        summary=found.summary,
        note=getattr(retriever, "tuning_note", None),
    )


def steps_of(answer: Hits) -> tuple[Step, ...]:
    """What a query of its own choice tried, cheapest first; nothing for any other."""
    return tuple(
        Step(submodel=step.submodel, macs=step.macs, confidence=step.confidence)
        for step in getattr(answer, "steps", ())
    )
