"""Which queries a size answers worse than the full encoder, and which classes they are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy import ndarray

from indexing import Failure, ImageRecord
from retrieval.frontier import ParetoFrontier


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """A query and what a size loses on it.

    Attributes:
        query: Number of the query in its evaluation.
        path: Its name.
        label: Name of its class; None without one.
        submodel: The size, as text.
        full: What the full encoder reaches, of `Evaluation.metric`.
        reached: What the size reaches.
        overlap: Share of the full encoder's hits that it finds too.
    """

    query: int
    path: str
    label: str | None
    submodel: str
    full: float
    reached: float
    overlap: float

    @property
    def lost(self) -> float:
        """What the size loses; below 0 where it is the better one."""
        return self.full - self.reached


class ClassLoss(NamedTuple):
    """What a size loses on the queries of a class, on average."""

    label: str
    queries: int
    lost: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that an evaluation found, query by query.

    Attributes:
        frontier: What each size costs and finds, on all queries.
        without_twins: The same without the queries that have a near-duplicate in the index, which
            every size finds; None if there are none, or nothing else.
        metric: What sizes lose is told in: `"map@r"` with labels, else the overlap.
        records: The queries.
        class_names: What their labels mean; None if they have none.
        twins: Which have a near-duplicate in the index.
        rows: Of each size the first k hits, as rows of the index, -1 where there are fewer.
        reached: Of each size the metric of each query, NaN where it cannot be judged.
        overlaps: Of each size the overlap with the full encoder's hits.
        failures: Queries that could not be read.
    """

    frontier: ParetoFrontier
    without_twins: ParetoFrontier | None
    metric: str
    records: tuple[ImageRecord, ...]
    class_names: tuple[str, ...] | None
    twins: Bool[ndarray, " queries"]
    rows: Mapping[str, Int64[ndarray, "queries k"]]
    reached: Mapping[str, Float[ndarray, " queries"]]
    overlaps: Mapping[str, Float[ndarray, " queries"]]
    failures: tuple[Failure, ...]

    @property
    def full(self) -> str:
        """The full encoder, as text."""
        return next(iter(self.rows))

    @property
    def smaller(self) -> list[str]:
        """The other sizes, cheapest first."""
        return [point.submodel for point in self.frontier if point.submodel != self.full]

    def disagreements(self, submodel: str) -> list[Disagreement]:
        """Sort the queries by what a size loses on them, most first; those not judged left out.

        Raises:
            KeyError: If the size was not evaluated.
        """
        full, reached = self.reached[self.full], self.reached[submodel]
        overlap = self.overlaps[submodel]
        order = np.lexsort((np.nan_to_num(overlap), reached - full))
        return [
            Disagreement(
                query=query,
                path=self.records[query].path,
                label=self.label_of(query),
                submodel=submodel,
                full=float(full[query]),
                reached=float(reached[query]),
                overlap=float(overlap[query]),
            )
            for query in order.tolist()
            if np.isfinite(full[query] - reached[query])
        ]

    def by_class(self, submodel: str) -> list[ClassLoss]:
        """Average what a size loses over the queries of each class, most first; none unlabelled."""
        lost: dict[str, list[float]] = {}
        for each in self.disagreements(submodel):
            if each.label is not None:
                lost.setdefault(each.label, []).append(each.lost)
        found = [ClassLoss(label, len(each), float(np.mean(each))) for label, each in lost.items()]
        return sorted(found, key=lambda each: (-each.lost, each.label))

    def label_of(self, query: int) -> str | None:
        """Name of the class of a query; None without one."""
        label = self.records[query].label
        return self.class_names[label] if self.class_names is not None and label >= 0 else None
