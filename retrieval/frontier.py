"""Recall against compute: which submodels are worth running, and which one to choose."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace

from retrieval.operating_point import Conditions, OperatingPoint


class ParetoFrontier:
    """Operating points, cheapest first, and which of them are the best.

    One point dominates another if it needs no more MACs, finds no less, and is better in one of
    the two; `pareto` holds exactly the points that none dominates. So of points with equal
    recall only the cheapest stays, and of points with equal cost only the best. Points equal in
    both all stay: neither is better, and their latency may tell them apart.

    Args:
        points: What was measured, in any order.
        metric: What to rank by, named as in JSON. By default what `OperatingPoint.recall`
            reads: retained hit rate with labels, overlap with the full encoder without.
        conditions: Who asked what of whom, and where.

    Raises:
        ValueError: If there are no points or the metric is not known for all of them.
    """

    def __init__(
        self,
        points: Iterable[OperatingPoint],
        *,
        metric: str | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        measured = list(points)
        self.metric = _shared_metric(measured) if metric is None else metric
        self.conditions = conditions
        ordered = sorted(measured, key=lambda p: (p.macs, -self.recall(p), p.submodel))
        kept = _non_dominated([(point.macs, self.recall(point)) for point in ordered])
        self.points = tuple(
            replace(point, pareto=best) for point, best in zip(ordered, kept, strict=True)
        )

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[OperatingPoint]:
        return iter(self.points)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ParetoFrontier):
            return NotImplemented
        mine, theirs = (self.metric, self.conditions), (other.metric, other.conditions)
        return mine == theirs and self.points == other.points

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<ParetoFrontier: {len(self.pareto)} of {len(self)} points, by {self.metric}>"

    @property
    def pareto(self) -> tuple[OperatingPoint, ...]:
        """The points that no other point dominates, cheapest first."""
        return tuple(point for point in self.points if point.pareto)

    @property
    def full(self) -> OperatingPoint | None:
        """The full encoder's point, which all others are compared with; None if not measured."""
        return next((point for point in self.points if point.macs_fraction == 1), None)

    def point_of(self, submodel: str) -> OperatingPoint:
        """Return the point of a submodel.

        Raises:
            KeyError: If it was not measured.
        """
        for point in self.points:
            if point.submodel == submodel:
                return point
        raise KeyError(f"submodel {submodel} was not measured")

    def describe(self, point: OperatingPoint) -> str:
        """Say in a few words what a submodel saves against the full encoder, and what it costs."""
        if point.macs_fraction == 1:
            return f"{point.submodel} is the full encoder: it saves nothing and loses nothing"
        saved = f"{point.submodel} saves {1 - point.macs_fraction:.0%} of the compute"
        full = None if self.full is None else self.full.hit_rate_at_1
        if point.hit_rate_at_1 is None or full is None:
            return f"{saved} and finds {point.overlap_at_k:.0%} of the full encoder's top {point.k}"
        lost = 100 * (full - point.hit_rate_at_1)
        change = f"costs {lost:.1f}" if lost >= 0 else f"gains {-lost:.1f}"
        return (
            f"{saved} and {change} points of hit_rate@1 ({point.hit_rate_at_1:.3f}, full "
            f"{full:.3f})"
        )

    def recall(self, point: OperatingPoint) -> float:
        """Read the metric that this frontier ranks by."""
        return point.value(self.metric)

    def cheapest(self, min_recall: float = 0.95) -> OperatingPoint:
        """Return the point with the fewest MACs whose recall is at least `min_recall`.

        Raises:
            ValueError: If no point reaches it; the message names the one that comes closest.
        """
        for point in self.points:
            if self.recall(point) >= min_recall:
                return point
        best = max(self.points, key=self.recall)
        raise ValueError(
            f"no submodel reaches {self.metric} {min_recall:g}; the best, {best.submodel}, "
            f"reaches {self.recall(best):.4f} for {best.macs:,} MACs"
        )

    def best(self, *, max_macs: float | None = None, max_ms: float | None = None) -> OperatingPoint:
        """Return the point with the highest recall within a budget, the cheapest of equals.

        Args:
            max_macs: Multiply-accumulates that embedding a query may cost.
            max_ms: Milliseconds that it may take at the median, as measured here.

        Raises:
            ValueError: If no budget is given, or nothing fits; then the message names the point
                that comes closest. Also if milliseconds are asked for and were not measured.
        """
        fitting = self.within(max_macs=max_macs, max_ms=max_ms)
        return max(fitting, key=self.recall)  # the first of equals, and points are sorted by cost

    def within(
        self, *, max_macs: float | None = None, max_ms: float | None = None
    ) -> ParetoFrontier:
        """Return the points that fit into a budget, as a frontier of their own; see `best`."""
        if max_macs is None and max_ms is None:
            raise ValueError("a budget is needed: give max_macs, max_ms or both")
        fitting = self.points
        if max_macs is not None:
            fitting = _within(fitting, max_macs / 1e9, lambda point: point.macs / 1e9, "GMACs")
        if max_ms is not None:
            fitting = _within(fitting, max_ms, _latency_ms, "ms")
        return ParetoFrontier(fitting, metric=self.metric, conditions=self.conditions)

    def to_json(self, recommended: str | None = None) -> str:
        """Write metric, conditions and points as JSON text, and which submodel is recommended."""
        document = {
            **({} if recommended is None else {"recommended": recommended}),
            "metric": self.metric,
            "conditions": None if self.conditions is None else asdict(self.conditions),
            "points": [point.to_dict() for point in self.points],
        }
        return json.dumps(document, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ParetoFrontier:
        """Read back what `to_json` wrote.

        Raises:
            ValueError: If the text is no such document.
        """
        try:
            document = json.loads(text)
            conditions = document["conditions"]
            return cls(
                [OperatingPoint.from_dict(point) for point in document["points"]],
                metric=document["metric"],
                conditions=None if conditions is None else Conditions(**conditions),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a frontier that to_json wrote: {error!r}") from error


def _shared_metric(points: list[OperatingPoint]) -> str:
    """Name the metric that all points are ranked by."""
    if not points:
        raise ValueError("a frontier needs at least one operating point, got none")
    metrics = sorted({point.metric for point in points})
    if len(metrics) > 1:
        raise ValueError(
            f"points measured by {' and '.join(metrics)} cannot be ranked together; "
            "evaluate them on the same queries, or name the metric"
        )
    return metrics[0]


def _non_dominated(ordered: list[tuple[int, float]]) -> list[bool]:
    """Mark the non-dominated of (macs, recall) pairs sorted by rising macs, falling recall."""
    kept = []
    last = (0, float("-inf"))
    for point in ordered:
        kept.append(point == last or point[1] > last[1])
        last = point if kept[-1] else last
    return kept


def _within(
    points: tuple[OperatingPoint, ...],
    limit: float,
    cost: Callable[[OperatingPoint], float],
    unit: str,
) -> tuple[OperatingPoint, ...]:
    """Keep the points that cost at most `limit`."""
    fitting = tuple(point for point in points if cost(point) <= limit)
    if not fitting:
        nearest = min(points, key=cost)
        raise ValueError(
            f"no submodel fits in {limit:.4g} {unit}; the nearest, {nearest.submodel}, "
            f"needs {_rounded_up(cost(nearest)):.4g} {unit}"
        )
    return fitting


def _rounded_up(value: float) -> float:
    """Round to four digits so that it is enough when somebody types it."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return math.ceil(value / step - 1e-9) * step


def _latency_ms(point: OperatingPoint) -> float:
    """Read the median latency."""
    if point.latency_ms_p50 is None:
        raise ValueError("milliseconds were not measured; evaluate with latency_queries above 0")
    return point.latency_ms_p50
