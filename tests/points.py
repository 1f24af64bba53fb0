"""Points of a frontier, made up."""

from __future__ import annotations

from retrieval import OperatingPoint

FULL_GMACS = 0.323


def point(submodel: str, gmacs: float, recall: float, ms: float | None = None) -> OperatingPoint:
    """A submodel that was measured on ten queries without labels."""
    return OperatingPoint(
        submodel=submodel,
        macs=round(gmacs * 1e9),
        macs_fraction=gmacs / FULL_GMACS,
        params=1,
        queries=10,
        k=10,
        overlap_at_k=recall,
        latency_ms_p50=ms,
    )
