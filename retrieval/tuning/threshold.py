"""Setting the thresholds of the per-query choice, so that little is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from matvit import Encoder, Submodel, added_macs, embed_each, trained_sizes
from retrieval import metrics
from retrieval.ground_truth import find_others
from retrieval.retriever import Retriever
from retrieval.tuning.auto import RANKS, confidence_of
from retrieval.tuning.record import Escalation, Operation, whole
from retrieval.tuning.sample import Queries, Sample

Ladder = tuple[Submodel, ...]

_LEVELS = 41
_TRIED = 3


@dataclass(frozen=True, kw_only=True)
class Replies:
    """What submodels answered to the same queries.

    Attributes:
        model: What they are cut from.
        confidence: Of each submodel's answer, one value per query.
        right: Whether its first hit is right, one value per query.
    """

    model: Encoder
    confidence: Mapping[Submodel, Float[ndarray, " queries"]]
    right: Mapping[Submodel, Float[ndarray, " queries"]]

    @property
    def queries(self) -> int:
        """How many there are."""
        return len(self.right[self.model.submodel()])

    def operate(
        self, ladder: Sequence[Submodel], thresholds: Sequence[float], level: float = math.nan
    ) -> tuple[Operation, Float[ndarray, " queries"]]:
        """Run an escalation on the replies.

        Returns:
            What it costs and keeps on average, and the loss of each query.
        """
        full = self.model.submodel()
        macs = np.zeros(self.queries)
        right = np.zeros(self.queries)
        going = np.ones(self.queries, dtype=bool)
        for rung, submodel in enumerate(ladder):
            macs[going] += added_macs(self.model, submodel, ladder[:rung])
            right[going] = self.right[submodel][going]
            if rung < len(thresholds):
                going &= self.confidence[submodel] < thresholds[rung]
        lost = self.right[full] - right
        operation = Operation(
            level=level,
            thresholds=tuple(map(float, thresholds)),
            macs_fraction=float(macs.mean() / added_macs(self.model, full, [])),
            lost=float(lost.mean()),
        )
        return operation, lost


def reply(
    retriever: Retriever, queries: Queries, submodels: Sequence[Submodel], *, uses_labels: bool
) -> Replies:
    """Ask the index with submodels, and with the full encoder.

    Args:
        retriever: A whole encoder and its index.
        queries: What is asked. With labels, those that nothing is relevant to are left out.
        submodels: What to ask with.
        uses_labels: Whether right means a hit of the same label, and confidence may look at the
            labels of the hits; else right means the full encoder's first hit.
    """
    model = whole(retriever.encoder)
    full = model.submodel()
    judged = queries
    if uses_labels:
        judged = queries.take(np.flatnonzero(queries.wanted.total > 0))
    confidence, right, first = {}, {}, {}
    labels = np.append(retriever.index.labels, -1)
    # In float32, as single queries are embedded: thresholds are small differences of scores.
    wanted = [full, *submodels]
    for submodel, vectors in embed_each(model, judged.pixels, wanted, precision="float32"):
        rows, scores = find_others(retriever.index, vectors, judged.wanted.own, RANKS)
        confidence[submodel] = confidence_of(scores, labels[rows] if uses_labels else None)
        first[submodel] = rows
        if uses_labels:
            relevant = metrics.relevance(labels[rows], judged.wanted.labels)
            right[submodel] = metrics.hit_rate(relevant, judged.wanted.total, 1)
    if not uses_labels:
        right = {each: metrics.overlap(rows, first[full], 1) for each, rows in first.items()}
    return Replies(model=model, confidence=confidence, right=right)


def ladders(model: Encoder, extra: Sequence[Submodel] = ()) -> list[Ladder]:
    """List escalations worth trying: from each start to full, directly or over a shared prefix.

    Args:
        model: A whole encoder.
        extra: More submodels to start from than the trained sizes.
    """
    full, depth = model.submodel(), model.config.depth
    starts = [
        each for each in dict.fromkeys([*trained_sizes(model.config), *extra]) if each != full
    ]
    found: list[Ladder] = []
    for start in starts:
        found.append((start, full))
        for kept in {depth // 2, 2 * depth // 3, depth - 1} - {0}:
            middle = widened(start, kept)
            if middle not in (start, full):
                found += [(start, middle), (start, middle, full)]
    return list(dict.fromkeys(found))


def widened(start: Submodel, kept: int) -> Submodel:
    """Return what begins as a submodel does, and keeps all hidden units and tokens after that."""
    left = len(start.widths) - kept
    return replace(
        start,
        widths=(*start.widths[:kept], *(start.hidden_dim,) * left),
        merged=(*start.merged[:kept], *(0,) * left),
    )


def set_thresholds(
    ask: Callable[[Queries, Sequence[Submodel]], Replies],
    sample: Sample,
    candidates: Sequence[Ladder],
    *,
    max_loss: float,
    certainty: float = 0.9,
) -> Escalation | None:
    """Find the escalation that costs least among those that certainly lose little.

    The ladder and the order in which its thresholds are tried come from the selecting queries.
    On the bounding ones each threshold is then tested, from the most cautious on, against
    losing more than `max_loss`, and the last one before the first that fails is taken. So with
    probability `certainty` the loss is at most `max_loss` on average over queries drawn as these
    were: with labels, of those that something is relevant to.

    Args:
        ask: Asks queries with submodels; see `reply`.
        sample: Queries to choose the ladder by, others to set its thresholds by, and yet others to
            say what it is worth. If they have labels, confidence looks at labels.
        candidates: Ladders.
        max_loss: Share of right first hits that may be lost.
        certainty: Of the bound, below 1.

    Returns:
        The escalation; None if none is certain to lose so little for less than the full encoder
        costs.

    References:
        Learn then Test, section 3 (fixed sequence testing, with the central limit theorem's
        p-values). https://arxiv.org/abs/2110.01052
    """
    check_bound(max_loss, certainty)
    each_certainty = 1 - (1 - certainty) / _TRIED  # several ladders may be tested
    selecting = ask(sample.selecting, _rungs(candidates))
    promising = _promising(selecting, candidates, max_loss, each_certainty)
    if not promising:
        return None
    rungs = _rungs([ladder for ladder, _ in promising])
    bounding, reporting = (ask(part, rungs) for part in (sample.bounding, sample.reporting))
    for ladder, operations in promising:
        passed = _test(bounding, ladder, operations, max_loss, each_certainty)
        if passed is None or passed.macs_fraction >= 1:
            continue
        reported, _ = reporting.operate(ladder, passed.thresholds, passed.level)
        every = [
            reporting.operate(ladder, each.thresholds, each.level)[0]
            for each in curve(selecting, ladder)
        ]
        return Escalation(
            ladder=tuple(map(str, ladder)),
            thresholds=passed.thresholds,
            uses_labels=sample.has_labels,
            max_loss=max_loss,
            certainty=certainty,
            calibrated_on=bounding.queries,
            reported=reported,
            curve=tuple(every),
        )
    return None


def _test(
    replies: Replies,
    ladder: Ladder,
    operations: Sequence[Operation],
    max_loss: float,
    certainty: float,
) -> Operation | None:
    """Return the last operation before the first that may lose too much, as `replies` have it."""
    passed = None
    for each in operations:
        measured, lost = replies.operate(ladder, each.thresholds, each.level)
        if upper_bound(lost, certainty) > max_loss:
            break
        passed = measured
    return passed


def _rungs(candidates: Sequence[Ladder]) -> list[Submodel]:
    return list(dict.fromkeys(submodel for ladder in candidates for submodel in ladder))


def check_bound(max_loss: float, certainty: float) -> None:
    """Refuse a bound that cannot be promised.

    Raises:
        ValueError: If `max_loss` is not above 0 and below 1, or `certainty` not within 0.5..1.
    """
    if not 0 < max_loss < 1 or not 0.5 <= certainty < 1:
        raise ValueError(
            f"max_loss must be above 0 and below 1 and certainty at least 0.5 and below 1, "
            f"got {max_loss} and {certainty}"
        )


def curve(replies: Replies, ladder: Sequence[Submodel]) -> list[Operation]:
    """Operate a ladder at every level of caution, from never to always going on."""
    operations = []
    for level in np.linspace(0, 1, _LEVELS):
        thresholds = [_threshold(replies.confidence[each], level) for each in ladder[:-1]]
        operations.append(replies.operate(ladder, thresholds, float(level))[0])
    return operations


def _promising(
    replies: Replies,
    candidates: Sequence[Ladder],
    max_loss: float,
    certainty: float,
) -> list[tuple[Ladder, list[Operation]]]:
    """Return the ladders that look cheapest, with the thresholds to test, the safest first."""
    ranked = []
    for place, ladder in enumerate(candidates):
        operations = curve(replies, ladder)
        bounds = [
            upper_bound(replies.operate(ladder, each.thresholds)[1], certainty)
            for each in operations
        ]
        safest = int(np.argmin(bounds))
        sequence = operations[safest::-1]  # ever less cautious, and cheaper
        good = [
            each.macs_fraction
            for each, bound in zip(sequence, bounds[safest::-1], strict=True)
            if bound <= max_loss
        ]
        if good:
            ranked.append((min(good), place, ladder, sequence))
    best = sorted(ranked, key=lambda item: item[:2])[:_TRIED]
    return [(ladder, sequence) for _, _, ladder, sequence in best]


def _threshold(confidence: Float[ndarray, " queries"], level: float) -> float:
    """Confidence that a share of the queries does not reach; finite, as JSON needs it."""
    if level <= 0:
        return -1.0
    if level >= 1:
        return 1e9
    finite = np.minimum(confidence, 1e6)
    return float(np.quantile(finite, level))


def upper_bound(lost: Float[ndarray, " queries"], certainty: float) -> float:
    """Upper confidence bound of the mean loss.

    The bound of the central limit theorem is too low where losses are rare and queries few. What
    is added is the exact bound of a sample without any loss (1 - certainty = e^(-n bound)).
    """
    count = len(lost)
    error = float(lost.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    rare = -math.log(1 - certainty) / count
    return float(lost.mean()) + NormalDist().inv_cdf(certainty) * error + rare
