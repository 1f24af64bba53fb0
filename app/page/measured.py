"""What was measured of recall and cost: by tuning, in a report, or on the page; what it buys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from threading import Lock

from app.output import one_line
from retrieval import (
    Conditions,
    Escalation,
    OperatingPoint,
    ParetoFrontier,
    Retriever,
    Tuning,
    format_conditions,
    read_tuning,
)

_STEPS = 100
_ONE_AT_A_TIME = Lock()


class Unit(StrEnum):
    """What a budget is given in."""

    GMACS = "GMACs"
    MS = "ms"


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where a budget slider goes from and to.

    Attributes:
        low: The smallest budget that something meets, rounded up.
        high: The largest that changes anything, rounded up.
        step: One step, one in the last decimal or a few.
        decimals: Decimals that are worth showing.
    """

    low: float
    high: float
    step: float
    decimals: int

    def clip(self, value: float) -> float:
        """Round a budget up to what the slider can show."""
        return min(self.high, max(self.low, _round_up(value, self.decimals)))


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What tuning stored with an index.

    Attributes:
        tuning: All of it; None if nothing was stored, or it cannot be read.
        problem: A sentence if the index has changed since, or the file is damaged.
    """

    tuning: Tuning | None = None
    problem: str | None = None

    @property
    def recommended(self) -> str | None:
        """The submodel to ask with, as text."""
        return None if self.tuning is None else self.tuning.recommended.submodel

    @property
    def summary(self) -> str:
        """What it saves and what it costs, in one line."""
        return "" if self.tuning is None else self.tuning.summary

    @property
    def auto(self) -> str | None:
        """What a query costs and loses that chooses for itself; None if it cannot."""
        found = None if self.tuning is None else self.tuning.escalation
        return None if found is None else _describe(found)

    @cached_property
    def by_ms(self) -> ParetoFrontier | None:
        """What a budget in milliseconds chooses from, timed on this machine."""
        if self.tuning is None:
            return None
        with _ONE_AT_A_TIME:  # what is timed at the same time is timed wrong
            return self.tuning.by_ms()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A frontier and where it comes from.

    Attributes:
        frontier: What was measured; None if nothing was.
        source: Where it comes from, in a few words.
        file: Name of the report that these words end with, if it comes from one.
        problem: Why a measurement that exists is not shown, or how far it still holds.
        tuned: What tuning stored, if the frontier is its own.
    """

    frontier: ParetoFrontier | None = None
    source: str = ""
    file: str = ""
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
        if self.tuned is None or self.tuned.tuning is None:
            return self.frontier
        return self.tuned.by_ms if unit is Unit.MS else self.tuned.tuning.by_overlap


def read_tuned(retriever: Retriever) -> Tuned:
    """Read what tuning stored; an extracted submodel has no use for it."""
    if not retriever.encoder.submodel(None).is_full:
        return Tuned()
    try:
        found = read_tuning(retriever.index, retriever.encoder)
    except ValueError as error:
        return Tuned(problem=one_line(error))
    return Tuned(tuning=found, problem=None if found is None else found.note(retriever.index))


def find_measured(
    retriever: Retriever, stored: Tuned, report: Path, own: ParetoFrontier | None = None
) -> Measured:
    """Choose what was measured last and nearest: just now, by tuning, or in a report.

    Args:
        retriever: The index and its encoder.
        stored: What tuning stored with the index.
        report: `report.json` of an evaluation; it need not exist.
        own: What was measured on the page itself.
    """
    if own is not None and own.conditions is not None and _is_of(own.conditions, retriever):
        return Measured(frontier=own, source="measured on this page")
    if stored.tuning is not None:
        source, tuned = "measured on this index by `matvit tune`", stored.tuning.frontier
        return Measured(frontier=tuned, source=source, problem=stored.problem, tuned=stored)
    if not report.exists():
        return Measured(problem=stored.problem)
    try:
        frontier = ParetoFrontier.from_json(report.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return Measured(problem=f"{report}: {one_line(error)}")
    if frontier.conditions is None or not _is_of(frontier.conditions, retriever):
        return Measured(
            problem=f"{report} was measured on another index or encoder; it is not shown."
        )
    file = f"{report.parent.name}/{report.name}"
    return Measured(frontier=frontier, source="from", file=file)


def units(frontier: ParetoFrontier) -> list[Unit]:
    """What budgets can be given in: milliseconds only if they were measured."""
    timed = all(point.latency_ms_p50 is not None for point in frontier)
    return [Unit.GMACS, Unit.MS] if timed else [Unit.GMACS]


def spent(point: OperatingPoint, unit: Unit) -> float:
    """What a point costs in a unit of budgets."""
    if unit is Unit.GMACS:
        return point.macs / 1e9
    assert point.latency_ms_p50 is not None
    return point.latency_ms_p50


def budget_range(frontier: ParetoFrontier, unit: Unit) -> Range:
    """From the cheapest point of a frontier to its dearest that is worth it."""
    low = min(spent(point, unit) for point in frontier)
    high = max(low, *(spent(point, unit) for point in frontier.pareto))
    decimals = _decimals((high - low) / _STEPS or low / _STEPS)
    step = float(10.0**-decimals)
    return Range(
        low=_round_up(low, decimals),
        high=max(_round_up(high, decimals), round(_round_up(low, decimals) + step, decimals)),
        step=step,
        decimals=decimals,
    )


def within(frontier: ParetoFrontier, unit: Unit, limit: float) -> OperatingPoint:
    """The point of a frontier that finds most within a budget.

    Raises:
        ValueError: If nothing fits; the message names the nearest.
    """
    if unit is Unit.GMACS:
        return frontier.best(max_macs=limit * 1e9)
    return frontier.best(max_ms=limit)


def found_in(frontier: ParetoFrontier | None, submodel: str) -> OperatingPoint | None:
    """The point of a submodel, if it was measured."""
    return next((point for point in frontier or () if point.submodel == submodel), None)


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


def _describe(escalation: Escalation) -> str:
    """Say what queries that choose for themselves cost and lose, on average."""
    reported = escalation.reported
    return (
        f"{' → '.join(escalation.ladder)}, as far as a query needs: "
        f"{reported.macs_fraction:.0%} of the compute on average, "
        f"{100 * reported.lost:.1f} points of first hits lost"
    )


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step)))


def _round_up(value: float, decimals: int) -> float:
    """Round up, but not for the last bit of a decimal fraction."""
    steps = math.ceil(value * 10**decimals - 1e-6)
    return float(round(steps / 10**decimals, decimals))
