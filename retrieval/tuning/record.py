"""What tuning found out, stored with its index and asked by whoever has a budget."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from indexing import IndexedImages
from matvit import Encoder, Submodel
from retrieval.frontier import OperatingPoint, ParetoFrontier, is_int8
from retrieval.retriever import Hits
from retrieval.speed import timed
from retrieval.tuning.cutoff import Cutoff
from retrieval.tuning.journal import damaged, read_checked, write_checked
from retrieval.tuning.score_scale import ScoreScale

TUNING = "tuning.json"
"""Name of the file, in the folder of its index."""


class TunedFor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The index that was tuned, as it was then.

    Attributes:
        generation: Of the index.
        images: In it.
        content: Hash of the ids and of the kind of index: a compaction changes neither.
        fingerprint: Of the full encoder.
        weights: Of the weights that its smaller sizes run from.
    """

    generation: int
    images: int
    content: str
    fingerprint: str
    weights: str

    def is_of(self, encoder: Encoder) -> bool:
        """Whether an encoder is the one that was measured, its smaller sizes too."""
        mine = (self.fingerprint, self.weights)
        return mine == (encoder.fingerprint, encoder.weights_fingerprint)

    @classmethod
    def of(cls, index: IndexedImages, encoder: Encoder) -> TunedFor:
        """Describe an index and its encoder as they are now."""
        info = index.info()
        digest = hashlib.sha256(json.dumps([info["kind"], info["factory"]]).encode())
        digest.update(index.ids.tobytes())
        return cls(
            generation=info["generation"],
            images=len(index),
            content=digest.hexdigest()[:16],
            fingerprint=encoder.fingerprint,
            weights=encoder.weights_fingerprint,
        )


class Operation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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


class Escalation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which submodels a query is asked with, one after the other, and when it stops.

    Attributes:
        ladder: Submodels, the first one first.
        thresholds: Confidence that each but the last must reach to be the last.
        uses_labels: Whether confidence also asks how many hits have the label of the first.
        max_loss: Bound on `Operation.lost` that the thresholds were set for.
        certainty: Probability with which it holds for queries like those they were set with.
        calibrated_on: Number of those.
        reported: What it costs and keeps on other queries.
        curve: The same for other thresholds, from never to always going on.

    Raises:
        ValueError: If there are not as many thresholds as steps to go on from.
    """

    ladder: tuple[str, ...]
    thresholds: tuple[float, ...]
    uses_labels: bool
    max_loss: float
    certainty: float
    calibrated_on: int
    reported: Operation
    curve: tuple[Operation, ...] = ()

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


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a query may cost, or what it must find.

    Args:
        max_gmacs: Billions of multiply-accumulates that embedding a query may cost.
        max_ms: Milliseconds that embedding a query alone may take at the median.
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

    def pick(self, frontier: ParetoFrontier) -> OperatingPoint:
        """Pick the cheapest point that reaches `min_recall`, without one the best that fits.

        Raises:
            ValueError: If nothing meets it; the message names what comes closest.
        """
        max_macs = None if self.max_gmacs is None else self.max_gmacs * 1e9
        if self.min_recall is None:
            return frontier.best(max_macs=max_macs, max_ms=self.max_ms)
        if max_macs is not None or self.max_ms is not None:
            frontier = frontier.within(max_macs=max_macs, max_ms=self.max_ms)
        return frontier.cheapest(self.min_recall)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Which submodels are worth asking an index with, measured on queries of its own kind.

    Choices are made by `selection`, and told by `frontier`, which other queries measured: the best
    of many is never as good as it looked when it was picked.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> from indexing import Corpus, ImageIndex
        >>> from matvit import MatViT, MatViTConfig
        >>> from retrieval import Retriever, tune
        >>> shape = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
        >>> folder, encoder = TemporaryDirectory(), MatViT(MatViTConfig(**shape))
        >>> for red in range(48):
        ...     Image.new("RGB", (16, 16), (5 * red, 0, 0)).save(f"{folder.name}/{red}.png")
        >>> index = ImageIndex.build(encoder, Corpus.open(folder.name), f"{folder.name}/index")
        >>> _ = tune(Retriever(encoder, index), size=40, latency=False)
        >>> tuning = Tuning.of(index, encoder)  # in any later program
        >>> len(tuning.choose(max_gmacs=1).widths)  # a submodel of two blocks
        2
        >>> folder.cleanup()

    Attributes:
        encoder: The whole encoder of the index.
        folder: Of the index.
        tuned_for: The index that this is about, as it was then.
        frontier: Operating points of the submodels that were kept.
        selection: The same, measured on the queries that are used to choose.
        target: Of the frontier's metric, what the recommended submodel has to reach.
        strategy: Name of what searched the submodels.
        measured: Submodels that it had to embed the queries with.
        selecting: Queries to choose by.
        altered: Whether the queries were altered images of the index.
        escalation: How a query chooses for itself; None if nothing was found worth it.
        scales: How the scores of submodels translate into the full encoder's.
        cutoff: The score to ask of a hit; None where nothing says what is right.
    """

    encoder: Encoder = field(repr=False, compare=False)
    folder: Path = field(compare=False)
    tuned_for: TunedFor
    frontier: ParetoFrontier
    selection: ParetoFrontier
    target: float
    strategy: str
    measured: int
    selecting: int
    altered: bool
    escalation: Escalation | None = None
    scales: Mapping[str, ScoreScale] = field(default_factory=dict)
    cutoff: Cutoff | None = None

    @classmethod
    def of(cls, index: IndexedImages, encoder: Encoder) -> Tuning:
        """Read what `tune` stored with an index.

        Raises:
            ValueError: If the index was never tuned with this encoder, what is stored is damaged,
                or the encoder is only an extracted submodel.
        """
        if (found := read_tuning(index, encoder)) is not None:
            return found
        raise ValueError(
            f"{index.path} was never tuned with encoder {encoder.name}; "
            f"run `matvit tune {index.path}` first, or name a submodel"
        )

    @property
    def by_overlap(self) -> ParetoFrontier:
        """What choices are made by, ranked by the overlap with the full encoder's answers.

        It tells submodels apart with few queries; a hit rate does not.
        """
        return ParetoFrontier(self.selection, metric=f"overlap@{self.selection.points[0].k}")

    def by_ms(self) -> ParetoFrontier:
        """Return `by_overlap` with the milliseconds that submodels take on this machine.

        They are measured at the first call and remembered; see `measured_ms`.
        """
        return self._timed(self.by_overlap)

    def choose(
        self,
        *,
        max_gmacs: float | None = None,
        max_ms: float | None = None,
        min_recall: float | None = None,
    ) -> Submodel:
        """Pick a submodel by a budget.

        Args:
            max_gmacs: Billions of multiply-accumulates that embedding a query may cost.
            max_ms: Milliseconds that embedding one query may take at the median on this machine;
                see `by_ms`.
            min_recall: What must be kept, of retained hit rate if the index has labels, else of
                the overlap; then the cheapest that keeps it is picked. Else it is the one with
                the largest overlap that fits: a hit rate is too coarse to tell submodels apart.

        Raises:
            ValueError: If no budget is given, one is out of range, or nothing meets it (the
                message names the nearest).
        """
        budget = Budget(max_gmacs=max_gmacs, max_ms=max_ms, min_recall=min_recall)
        frontier = self.by_overlap if min_recall is None else self.selection
        allowed = frontier if max_ms is None else self._timed(frontier)
        return self.encoder.submodel(budget.pick(allowed).submodel)

    def on_full_scale(self, hits: Hits) -> Hits:
        """Give hits the scores that the full encoder would have given; see `ScoreScale`.

        So that a threshold means the same whatever submodel answers.

        Raises:
            ValueError: If the scores of the submodel that answered were not measured.
        """
        if self.encoder.submodel(hits.submodel).is_full or not hits.hits:
            return hits
        if (scale := self.scales.get(hits.submodel)) is None:
            raise ValueError(
                f"the scores of {hits.submodel} were not measured when {self.folder} was tuned; "
                f"those of {', '.join(self.scales)} were"
            )
        scores = scale.to_full(np.array([hit.score for hit in hits]))
        pairs = zip(hits.hits, scores, strict=True)
        return replace(hits, hits=tuple(replace(hit, score=float(new)) for hit, new in pairs))

    @property
    def recommended(self) -> OperatingPoint:
        """The cheapest submodel that was selected to reach the target; else the full one.

        8 bits cost no less compute, only less time: `choose` by milliseconds takes them.
        """
        selection = _without_int8(self.selection)
        try:
            chosen = selection.cheapest(self.target)
        except ValueError:
            chosen = max(selection, key=selection.recall)
        return self.frontier.point_of(chosen.submodel)

    @property
    def summary(self) -> str:
        """What the recommended submodel saves and what it costs, in one line."""
        chosen, metric = self.recommended, self.frontier.metric
        if chosen.is_full:
            return (
                f"recommended: {chosen.submodel}, the full encoder; nothing smaller reaches "
                f"{metric} {self.target:g}"
            )
        return (
            f"recommended: {self.frontier.describe(chosen)}, on {chosen.queries:,} queries that "
            "did not choose it"
        )

    def note(self, index: IndexedImages) -> str | None:
        """Say how an index has changed since it was tuned; None if it has not."""
        then, generation = self.tuned_for, index.info()["generation"]
        if generation == then.generation:
            return None
        if TunedFor.of(index, self.encoder).content == then.content:
            return None
        return (
            f"the index was tuned at generation {then.generation} with {then.images:,} images "
            f"and is now at generation {generation} with {len(index):,}; "
            "`matvit tune` measures again"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: all but the encoder and the folder."""
        values = {name: getattr(self, name) for name in _Stored.__struct_fields__}
        plain: dict[str, Any] = msgspec.to_builtins(values, enc_hook=ParetoFrontier.to_dict)
        return plain

    def store(self) -> None:
        """Put it beside its index, in place of an earlier one.

        Raises:
            OSError: If that is not possible.
        """
        write_checked(self.folder / TUNING, self.to_dict())

    def _timed(self, frontier: ParetoFrontier) -> ParetoFrontier:
        return ParetoFrontier(timed(self.encoder, frontier), metric=frontier.metric)


class _Stored(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tuning as it is stored; see `Tuning`."""

    tuned_for: TunedFor
    frontier: ParetoFrontier
    selection: ParetoFrontier
    target: float
    strategy: str
    measured: int
    selecting: int
    altered: bool
    escalation: Escalation | None
    scales: dict[str, ScoreScale]
    cutoff: Cutoff | None = None  # of what was tuned before there was one


def read_tuning(index: IndexedImages, encoder: Encoder) -> Tuning | None:
    """Read the tuning of an index; None if it has none, or one of another encoder.

    Raises:
        ValueError: If it is damaged, or the encoder is only an extracted submodel.
    """
    model, path = whole(encoder), index.path / TUNING
    if (values := read_checked(path)) is None:
        return None
    try:
        stored = msgspec.convert(values, _Stored, dec_hook=lambda kind, each: kind.from_dict(each))
    except ValueError as error:
        raise damaged(path, str(error)) from error
    if not stored.tuned_for.is_of(model):
        return None
    values = msgspec.structs.asdict(stored)
    if not model.runtime.has_int8:  # as when it was tuned
        for name in ("frontier", "selection"):
            values[name] = _without_int8(values[name])
    return Tuning(encoder=model, folder=index.path, **values)


def _without_int8(frontier: ParetoFrontier) -> ParetoFrontier:
    exact = [point for point in frontier if not is_int8(point.submodel)]
    return ParetoFrontier(exact, metric=frontier.metric, conditions=frontier.conditions)


def whole(encoder: Encoder) -> Encoder:
    """Return an encoder if it is a whole one.

    Raises:
        ValueError: If it is an extracted submodel, of which nothing can be cut.
    """
    if not encoder.is_whole:
        raise ValueError(
            f"{encoder.name} is only the extracted submodel {encoder.submodel(None)}; "
            "choosing among submodels needs the whole encoder"
        )
    return encoder
