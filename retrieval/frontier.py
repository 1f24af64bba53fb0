"""Recall against compute: what submodels cost and find, and which of them are worth running."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import msgspec

from matvit import parse_json

# The metrics under their names in JSON. Only the overlap can be measured without labels.
_METRICS = {
    "hit_rate_at_1": "hit_rate@1",
    "recall_at_k": "recall@{k}",
    "map_at_r": "map@r",
    "overlap_at_k": "overlap@{k}",
    "retained_hit_rate_at_1": "retained_hit_rate@1",
}


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """What one submodel costs and what it finds.

    Examples:
        >>> point = OperatingPoint(
        ...     submodel="S", macs=144, macs_fraction=0.45, params=9, queries=500, k=10,
        ...     hit_rate_at_1=0.30, overlap_at_k=0.70, retained_hit_rate_at_1=0.97,
        ... )
        >>> point.metric, point.recall, point.value("overlap@10")
        ('retained_hit_rate@1', 0.97, 0.7)

    Args:
        submodel: The submodel as text, such as `"S"` or `"4xS,2xXL"`.
        macs: Multiply-accumulates of embedding one query.
        macs_fraction: The same as a share of the full encoder's.
        params: Parameters of the submodel.
        queries: Queries asked.
        k: Hits that the metrics "at k" look at.
        hit_rate_at_1: Share of queries whose first hit has their label; None without labels.
        recall_at_k: Mean share of the relevant images in the top k; None without labels.
        map_at_r: Mean average precision at R; None without labels.
        overlap_at_k: Mean share of the full encoder's top k that the submodel also returns.
        retained_hit_rate_at_1: `hit_rate_at_1` as a share of the full encoder's; None without
            labels, or where the full encoder never hits.
        latency_ms_p50: Median milliseconds to embed one image alone; None if not measured.
        latency_ms_p95: 95th percentile of the same.
        images_per_s: Images embedded per second, in batches; None if not measured.
        pareto: Whether no other point of its frontier is better; None outside a frontier.

    Raises:
        ValueError: If a number is not finite.
    """

    submodel: str
    macs: int
    macs_fraction: float
    params: int
    queries: int
    k: int
    hit_rate_at_1: float | None = None
    recall_at_k: float | None = None
    map_at_r: float | None = None
    overlap_at_k: float
    retained_hit_rate_at_1: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
    images_per_s: float | None = None
    # A verdict of the company it keeps, not a property of what was measured.
    pareto: bool | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{each.name} must be a finite number or None, got {value}")

    @property
    def is_full(self) -> bool:
        """Whether this is the full encoder, which all others are compared with."""
        return self.macs_fraction == 1 and not is_int8(self.submodel)

    @property
    def metric(self) -> str:
        """The metric that `recall` reads: retained hit rate with labels, overlap without."""
        return f"overlap@{self.k}" if self.retained_hit_rate_at_1 is None else "retained_hit_rate@1"

    @property
    def recall(self) -> float:
        """How much of the full encoder's search survives, 1 for all of it; see `metric`."""
        return self.value(self.metric)

    def value(self, metric: str) -> float:
        """Read a metric by its name in JSON, such as `"map@r"`.

        Raises:
            ValueError: If there is no such metric or it was not measured.
        """
        known = {name.format(k=self.k): attribute for attribute, name in _METRICS.items()}
        if metric not in known:
            raise ValueError(f"unknown metric {metric!r}; known: {', '.join(known)}")
        value: float | None = getattr(self, known[metric])
        if value is None:
            raise ValueError(f"{metric} of {self.submodel} was not measured; it needs labels")
        return value

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, in the stable shape of `matvit evaluate --json`."""
        return {name: getattr(self, attribute) for name, attribute in _attributes(self.k).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> OperatingPoint:
        """Read back what `to_dict` returned.

        Raises:
            ValueError: If a key is unknown or missing.
        """
        cutoffs = [key.removeprefix("overlap@") for key in values if key.startswith("overlap@")]
        k = int(cutoffs[0]) if cutoffs and cutoffs[0].isdecimal() else 0
        attributes = _attributes(k)
        if wrong := sorted(values.keys() ^ attributes.keys()):
            raise ValueError(f"not an operating point; unknown or missing keys: {wrong}")
        known = {attributes[key]: value for key, value in values.items()}
        return msgspec.convert({"k": k, **known}, cls)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Who asked what of whom, and where: a measurement means little without them.

    Args:
        encoder: Name of the encoder.
        fingerprint: Fingerprint of its weights and architecture.
        images: Images in the index.
        queries: Queries asked.
        unreadable: Queries given but not asked, because they could not be decoded.
        without_relevant: Queries that the label metrics leave out, because nothing in the index
            is relevant to them; None without labels.
        in_index: Queries that are in the index themselves, and were not counted as hits.
        device: Where the encoder ran, such as `"cpu, 2 threads"`.
        precision: Number format of its matrix products, such as `"bfloat16"`.
        weights: Fingerprint of the weights that the smaller sizes run from, of which one
            `fingerprint` can have several; empty in reports that were made before it was kept.
        runtime: What computed, such as `"onnxruntime 1.23.2"`; empty in those reports too.
        disorder: Why the milliseconds are not to be relied on; empty if nothing is wrong.
        twins: Queries of which the index holds a near-duplicate, which every size finds.
    """

    encoder: str
    fingerprint: str
    images: int
    queries: int
    unreadable: int
    without_relevant: int | None
    in_index: int
    device: str
    precision: str
    weights: str = ""
    runtime: str = ""
    disorder: str = ""
    twins: int = 0


def is_int8(submodel: str) -> bool:
    """Whether a submodel, as text, computes in 8 bits."""
    return submodel.endswith(":int8")


def _attributes(k: int) -> dict[str, str]:
    """Map the JSON names of a point to its attributes, in the stable order."""
    names = [each.name for each in fields(OperatingPoint) if each.name != "k"]
    return {_METRICS.get(name, name).format(k=k): name for name in names}


class ParetoFrontier:
    """Operating points, cheapest first, and which of them are the best.

    One point dominates another if it needs no more MACs, finds no less, and is better in one of
    the two; `pareto` holds exactly the points that none dominates. So of points with equal
    recall only the cheapest stays, and of points with equal cost only the best. Points equal in
    both all stay: neither is better, and their latency may tell them apart.

    Examples:
        >>> same = {"params": 9, "queries": 500, "k": 10}
        >>> frontier = ParetoFrontier(
        ...     OperatingPoint(submodel=s, macs=m, macs_fraction=m / 100, overlap_at_k=o, **same)
        ...     for s, m, o in [("S", 45, 0.7), ("M", 52, 0.6), ("XL", 100, 1.0)]
        ... )
        >>> [point.submodel for point in frontier.pareto]
        ['S', 'XL']
        >>> frontier.best(max_macs=60).submodel, frontier.cheapest(min_recall=0.9).submodel
        ('S', 'XL')

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
        return next((point for point in self.points if point.is_full), None)

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
        if point.is_full:
            return f"{point.submodel} is the full encoder: it saves nothing and loses nothing"
        saved = f"{point.submodel} saves {1 - point.macs_fraction:.0%} of the compute"
        full = None if self.full is None else self.full.hit_rate_at_1
        if point.hit_rate_at_1 is None or full is None:
            return f"{saved} and finds {point.overlap_at_k:.0%} of the full encoder's top {point.k}"
        lost = 100 * (full - point.hit_rate_at_1)
        change = f"costs {lost:.1f}" if lost >= 0 else f"gains {-lost:.1f}"
        reached = f"({point.hit_rate_at_1:.3f}, full {full:.3f})"
        return f"{saved} and {change} points of hit_rate@1 {reached}"

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

    def to_dict(self) -> dict[str, Any]:
        """Return metric, conditions and points as plain JSON values."""
        return {
            "metric": self.metric,
            "conditions": None if self.conditions is None else asdict(self.conditions),
            "points": [point.to_dict() for point in self.points],
        }

    def to_json(self, recommended: str | None = None) -> str:
        """Write `to_dict` as JSON text, and which submodel is recommended."""
        said = {} if recommended is None else {"recommended": recommended}
        return json.dumps({**said, **self.to_dict()}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, values: object) -> ParetoFrontier:
        """Read back what `to_dict` returned.

        Raises:
            ValueError: If it is of another shape.
        """
        try:
            document = msgspec.convert(values, _Document)
        except msgspec.ValidationError as error:
            raise ValueError(f"not a frontier that to_json wrote: {error}") from error
        points = map(OperatingPoint.from_dict, document.points)
        return cls(points, metric=document.metric, conditions=document.conditions)

    @classmethod
    def from_json(cls, text: str) -> ParetoFrontier:
        """Read back what `to_json` wrote.

        Raises:
            ValueError: If the text is no such document.
        """
        return cls.from_dict(parse_json(text, dict[str, Any], "a frontier that to_json wrote"))


class _Document(msgspec.Struct):
    """A frontier in JSON; a report says more."""

    metric: str
    conditions: Conditions | None
    points: list[dict[str, Any]]


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
    if point.latency_ms_p50 is None:
        raise ValueError("milliseconds were not measured; evaluate with latency_queries above 0")
    return point.latency_ms_p50
