"""A query that chooses for itself: asked with a small submodel first, with a larger one if unsure.

The index's own answer says how sure it is; going on costs only what the larger submodel does not
share with the smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from numpy import ndarray

from matvit import ContinuedEmbedding, MatViT

AUTO = "auto"
"""What to ask for instead of a submodel, to let each query choose."""

RANKS = 10
"""Hits that confidence looks at."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One submodel that a query was asked with.

    Attributes:
        submodel: As text.
        macs: Multiply-accumulates that it added to the steps before.
        encode_ms: Milliseconds that embedding with it took.
        search_ms: Milliseconds that searching took.
        confidence: How sure its answer is; see `confidence_of`.
    """

    submodel: str
    macs: int
    encode_ms: float
    search_ms: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What escalation costs and keeps at one level of caution, on average over queries.

    Attributes:
        level: Share of the queries that are not sure enough at a step, over all of them.
        thresholds: Confidence that each step but the last must reach to be the last.
        macs_fraction: Mean multiply-accumulates of a query, as a share of the full encoder's.
        lost: Share of right first hits that the full encoder has and escalation has not, less
            those that only escalation has. Right is a hit of the query's label or, without labels,
            the one that the full encoder puts first.
    """

    level: float
    thresholds: tuple[float, ...]
    macs_fraction: float
    lost: float


@dataclass(frozen=True, kw_only=True)
class Escalation:
    """Which submodels a query is asked with, one after the other, and when it stops.

    Attributes:
        ladder: Submodels, the first one first.
        thresholds: Confidence that each but the last must reach to be the last.
        uses_labels: Whether confidence also asks how many hits have the label of the first.
        max_loss: Bound on `Operation.lost` that the thresholds were calibrated to.
        certainty: Probability with which it holds for queries like those calibrated on.
        calibrated_on: Number of those.
        reported: What it costs and keeps on other queries.
        curve: The same for other thresholds, from never to always going on.
    """

    ladder: tuple[str, ...]
    thresholds: tuple[float, ...]
    uses_labels: bool
    max_loss: float
    certainty: float
    calibrated_on: int
    reported: Operation
    curve: tuple[Operation, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.ladder) - 1 or not self.ladder:
            raise ValueError(
                f"a ladder of {len(self.ladder)} submodels needs one threshold for each but the "
                f"last, got {len(self.thresholds)}"
            )

    @property
    def goes_on(self) -> bool:
        """Whether any query does; else the first submodel alone keeps what was asked for."""
        return any(threshold >= 0 for threshold in self.thresholds)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Escalation:
        """Read back what `to_dict` returned.

        Raises:
            ValueError: If the values are of another shape.
        """
        try:
            known = {
                **values,
                "ladder": tuple(values["ladder"]),
                "thresholds": tuple(values["thresholds"]),
                "reported": _operation(values["reported"]),
                "curve": tuple(map(_operation, values["curve"])),
            }
            return cls(**known)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an escalation: {error!r}") from error


class Answer(NamedTuple):
    """What one query found in the end, and how it got there."""

    ids: Int64[ndarray, " k"]
    scores: Float32[ndarray, " k"]
    steps: tuple[Step, ...]


Search = Callable[
    [Float32[ndarray, "queries dim"]],
    tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]],
]
LabelsOf = Callable[[Int64[ndarray, "queries k"]], Int64[ndarray, "queries k"]]


def confidence_of(
    scores: Float[ndarray, "queries ranks"], labels: Int64[ndarray, "queries ranks"] | None = None
) -> Float[ndarray, " queries"]:
    """Say how sure an answer is, from the answer alone.

    This is the margin between the first and the second score. With labels, the share of the
    other hits that have the label of the first one comes on top, and counts for much more.

    Args:
        scores: Of the hits, best first; -inf for none.
        labels: Of the hits, -1 for none.

    Returns:
        Higher is surer. An answer of one hit has nothing that it could be confused with: infinity.
    """
    if scores.shape[1] < 2:
        return np.full(len(scores), np.inf)
    with np.errstate(invalid="ignore"):
        margin = np.nan_to_num(scores[:, 0] - scores[:, 1], nan=np.inf, posinf=np.inf)
    if labels is None:
        return np.asarray(margin, dtype=np.float64)
    same = (labels[:, 1:] == labels[:, :1]) & (labels[:, :1] >= 0)
    there = np.isfinite(scores[:, 1:])
    share = (same & there).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return np.asarray(margin + share, dtype=np.float64)


def escalate(
    escalation: Escalation,
    model: MatViT,
    pixels: UInt8[ndarray, "queries height width 3"],
    search: Search,
    labels_of: LabelsOf | None,
) -> list[Answer]:
    """Ask with one submodel after the other until each query is sure.

    Args:
        escalation: Which submodels, and when to stop.
        model: A whole encoder.
        pixels: The queries, at least one.
        search: Finds the nearest images of vectors; at least `RANKS` if there are so many.
        labels_of: Classes of images by id; None if the index has none.

    Returns:
        One answer per query, in order.
    """
    answers: list[Answer | None] = [None] * len(pixels)
    steps: list[tuple[Step, ...]] = [()] * len(pixels)
    waiting = np.arange(len(pixels))
    for rung, found, confidence, step in _climb(escalation, model, pixels, search, labels_of):
        last = rung == len(escalation.ladder) - 1
        for place, query in enumerate(waiting):
            mine = Step(**{**asdict(step), "confidence": float(confidence[place])})
            steps[query] = (*steps[query], mine)
            if last or confidence[place] >= escalation.thresholds[rung]:
                answers[query] = Answer(found[0][place], found[1][place], steps[query])
        waiting = np.array([query for query in waiting if answers[query] is None], dtype=np.int64)
    return [answer for answer in answers if answer is not None]


_Found = tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]


def _climb(
    escalation: Escalation,
    model: MatViT,
    pixels: UInt8[ndarray, "queries height width 3"],
    search: Search,
    labels_of: LabelsOf | None,
) -> Iterator[tuple[int, _Found, Float[ndarray, " queries"], Step]]:
    """Yield the answers of each rung to the queries that were not sure at the one before."""
    images = ContinuedEmbedding(model, pixels)
    count = len(pixels)
    for rung, submodel in enumerate(escalation.ladder):
        added = images.added_macs(submodel)
        start = perf_counter()
        vectors = images.embed(submodel)
        embedded = perf_counter()
        ids, scores = search(vectors)
        searched = perf_counter()
        labels = labels_of(ids[:, :RANKS]) if escalation.uses_labels and labels_of else None
        confidence = confidence_of(scores[:, :RANKS], labels)
        encode_ms, search_ms = 1000 * (embedded - start), 1000 * (searched - embedded)
        yield (
            rung,
            (ids, scores),
            confidence,
            Step(
                submodel=submodel,
                macs=added,
                encode_ms=encode_ms / count,
                search_ms=search_ms / count,
                confidence=0.0,
            ),
        )
        if rung == len(escalation.ladder) - 1:
            return
        unsure = np.flatnonzero(confidence < escalation.thresholds[rung])
        if not len(unsure):
            return
        if len(unsure) < count:
            images = images.take(unsure)
            count = len(unsure)


def _operation(values: dict[str, Any]) -> Operation:
    return Operation(**{**values, "thresholds": tuple(values["thresholds"])})
