"""From a budget to a submodel: the best that it buys, or the cheapest that is good enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from retrieval.frontier import OperatingPoint, ParetoFrontier

MeasureMs = Callable[[Sequence[str]], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a query may cost, or what it must find.

    Args:
        max_gmacs: Billions of multiply-accumulates that embedding a query may cost.
        max_ms: Milliseconds that embedding a query may take at the median on this machine, alone.
        min_recall: What of the frontier's metric is needed, within 0..1.

    Raises:
        ValueError: If none is given, or one is out of range.
    """

    max_gmacs: float | None = None
    max_ms: float | None = None
    min_recall: float | None = None

    def __post_init__(self) -> None:
        if self.max_gmacs is self.max_ms is self.min_recall is None:
            raise ValueError("a budget is needed: give max_gmacs, max_ms or min_recall")
        for name in ("max_gmacs", "max_ms"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0, got {value}")
        if self.min_recall is not None and not 0 <= self.min_recall <= 1:
            raise ValueError(f"min_recall must be within 0..1, got {self.min_recall}")


def choose(frontier: ParetoFrontier, budget: Budget, measure_ms: MeasureMs) -> OperatingPoint:
    """Pick the submodel that a budget asks for.

    With `min_recall` it is the cheapest that reaches it, without it the best that fits.

    Args:
        frontier: What was measured.
        budget: What is asked for.
        measure_ms: Returns the milliseconds that submodels take here; called only if
            milliseconds matter.

    Raises:
        ValueError: If nothing meets it; the message names what comes closest.
    """
    allowed = frontier if budget.max_ms is None else timed(frontier, measure_ms)
    max_macs = None if budget.max_gmacs is None else budget.max_gmacs * 1e9
    if budget.min_recall is None:
        return allowed.best(max_macs=max_macs, max_ms=budget.max_ms)
    if max_macs is not None or budget.max_ms is not None:
        allowed = allowed.within(max_macs=max_macs, max_ms=budget.max_ms)
    return allowed.cheapest(budget.min_recall)


def timed(frontier: ParetoFrontier, measure_ms: MeasureMs) -> ParetoFrontier:
    """Return the same points with the milliseconds that they take here."""
    here = measure_ms([point.submodel for point in frontier])
    points = [
        replace(point, latency_ms_p50=here[point.submodel], latency_ms_p95=None)
        for point in frontier
    ]
    return ParetoFrontier(points, metric=frontier.metric)
