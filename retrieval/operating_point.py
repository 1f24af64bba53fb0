"""What was measured: the cost and quality of one submodel, and under which conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

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
    def metric(self) -> str:
        """The metric that `recall` reads: retained hit rate with labels, overlap without."""
        if self.retained_hit_rate_at_1 is None:
            return f"overlap@{self.k}"
        return "retained_hit_rate@1"

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
        return cls(k=k, **{attributes[key]: value for key, value in values.items()})


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


def _attributes(k: int) -> dict[str, str]:
    """Map the JSON names of a point to its attributes, in the stable order."""
    names = [each.name for each in fields(OperatingPoint) if each.name != "k"]
    return {_METRICS.get(name, name).format(k=k): name for name in names}
