"""Choosing a submodel: within a budget, or block by block; and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from matvit import Granularity, MatViTConfig, Submodel, count_macs, count_params
from retrieval import OperatingPoint, ParetoFrontier

_STEPS = 100


class Unit(StrEnum):
    """What a budget is given in."""

    GMACS = "GMACs"
    MS = "ms"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a submodel costs.

    Attributes:
        submodel: The submodel, as text.
        macs: Multiply-accumulates of embedding one image.
        fraction: The same as a share of the full encoder's.
        params: Its parameters.
        widths: Of each block, as a share of all its hidden units.
    """

    submodel: str
    macs: int
    fraction: float
    params: int
    widths: tuple[float, ...]


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
    )


def blocks_of(submodel: Submodel) -> list[Granularity]:
    """The trained size of each block; of a width between two, the smaller one's."""
    sizes = list(Granularity)
    return [
        max((size for size in sizes if size.width(submodel.hidden_dim) <= width), default=sizes[0],
            key=sizes.index)
        for width in submodel.widths
    ]  # fmt: skip


def from_blocks(config: MatViTConfig, sizes: Sequence[Granularity]) -> Submodel:
    """Put a submodel together, one size per block."""
    return Submodel(tuple(size.width(config.hidden_dim) for size in sizes), config.hidden_dim)


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


def measured(frontier: ParetoFrontier | None, submodel: str) -> OperatingPoint | None:
    """The point of a submodel, if it was measured."""
    return next((point for point in frontier or () if point.submodel == submodel), None)


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step)))


def _round_up(value: float, decimals: int) -> float:
    """Round up, but not for the last bit of a decimal fraction."""
    steps = math.ceil(value * 10**decimals - 1e-6)
    return float(round(steps / 10**decimals, decimals))
