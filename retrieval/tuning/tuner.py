"""Measuring which submodels are worth asking an index with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import msgspec

from indexing import Corpus
from matvit import Encoder, Submodel, count_macs, progress_of, trained_sizes
from retrieval.evaluation import conditions_of, costs_of
from retrieval.frontier import Conditions, OperatingPoint, ParetoFrontier
from retrieval.metrics import retained
from retrieval.retriever import Retriever
from retrieval.speed import describe_precision, disorder, timed
from retrieval.tuning.candidates import KEPT, STRATEGY, ask_candidates, spread
from retrieval.tuning.cutoff import MAX_FALSE_ACCEPTS, Cutoff, best_scores, choose_cutoff
from retrieval.tuning.journal import Journal, Score, only_one
from retrieval.tuning.record import Escalation, TunedFor, Tuning, whole
from retrieval.tuning.sample import FEWEST, Sample, draw_sample
from retrieval.tuning.threshold import check_bound, ladders, reply, set_thresholds
from retrieval.tuning.trial import Trial

TARGET_WITH_LABELS = 0.95
TARGET_WITHOUT_LABELS = 0.8
MAX_LOSS_WITH_LABELS = 0.02
MAX_LOSS_WITHOUT_LABELS = 0.1
PROGRESS = "tuning.progress.json"
_REPORTED = 20
_RETAINED = "retained_hit_rate@1"
_STARTS = 4


def tune(
    retriever: Retriever,
    queries: Corpus | None = None,
    *,
    size: int = 2000,
    k: int = 10,
    target: float | None = None,
    max_loss: float | None = None,
    certainty: float = 0.9,
    seed: int = 0,
    max_false_accepts: float = MAX_FALSE_ACCEPTS,
    latency: bool = True,
    progress: bool = False,
    on_step: Callable[[int], object] = lambda _: None,
) -> Tuning:
    """Find the submodels that keep the most retrieval, and store them with the index.

    What was measured when it is interrupted is kept, and the same call goes on from there.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> from indexing import ImageIndex
        >>> from matvit import MatViT, MatViTConfig
        >>> shape = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
        >>> folder, encoder = TemporaryDirectory(), MatViT(MatViTConfig(**shape))
        >>> for red in range(48):
        ...     Image.new("RGB", (16, 16), (5 * red, 0, 0)).save(f"{folder.name}/{red}.png")
        >>> index = ImageIndex.build(encoder, Corpus.open(folder.name), f"{folder.name}/index")
        >>> tuning = tune(Retriever(encoder, index), size=40, latency=False)
        >>> {"S", "M", "L", "XL"} <= {point.submodel for point in tuning.frontier}
        True
        >>> folder.cleanup()

    Args:
        retriever: A whole encoder and its index.
        queries: Images like those that will be asked with; None takes images of the index itself
            and alters them a little. Their labels are used if the index has labels too.
        size: Queries to draw: a quarter to select submodels by, half to set the thresholds of the
            per-query choice by, a quarter to report on.
        k: Hits that the overlap looks at.
        target: What the recommended submodel has to reach, of retained hit rate with labels
            (default 0.95), of the overlap without (default 0.8).
        max_loss: Share of right first hits that the per-query choice may lose: of those with the
            query's label (default 0.02), without labels of the full encoder's (default 0.1).
        certainty: Of that bound.
        seed: Of the draw.
        max_false_accepts: Share of the queries that the proposed cut-off may show a wrong image:
            one of another label; without labels, to somebody whose image is not there.
        latency: Whether to time the submodels that are kept, anew whatever is remembered.
        progress: Show a progress bar on stderr.
        on_step: Called with the number of submodels that an interrupted run has measured, and
            with 1 for each more; what it raises ends the run.

    Returns:
        What was found, measured on queries that were not used to find it.

    Raises:
        ValueError: If the encoder is an extracted submodel, there are too few queries, or a
            setting is out of range.
        BlockingIOError: If another process is tuning the index.
        OSError: If it cannot be stored.
    """
    model = whole(retriever.encoder)
    retriever.index.check_encoder(model)
    _check(k, len(retriever.index), target, max_loss, certainty)
    if not 0 < max_false_accepts < 1:
        raise ValueError(f"max_false_accepts must be above 0 and below 1, got {max_false_accepts}")
    folder = retriever.index.path
    with only_one(folder), progress_of("tuning", unit="submodels", shown=progress) as bar:
        sample = draw_sample(retriever, queries, size=size, seed=seed)
        settings = _settings(retriever, sample, k)

        def told(count: int) -> None:
            bar.update(count)
            on_step(count)

        journal = Journal(folder / PROGRESS, settings, model, told)
        trial = _search(retriever, sample, k, journal)
        reported = _worth_reporting(model, trial.searched)
        reporting = Trial(retriever, sample.reporting, k, on_progress=lambda: on_step(1))
        points = _report(model, reporting, len(sample.reporting), reported, k)
        selected = _report(model, trial, len(sample.selecting), reported, k)
        escalation = _escalation(retriever, sample, reported, max_loss, certainty)
        if escalation is not None:
            reporting.ask(map(model.submodel, escalation.ladder))  # for the scale of their scores
        if latency:
            points = timed(model, points, progress=progress, again=True)
        conditions = replace(_conditions(retriever, sample), disorder=disorder(points) or "")
        frontier, selection = _of_one_metric(
            ParetoFrontier(points, conditions=conditions),
            ParetoFrontier(selected),
            k,
        )
        labelled = frontier.metric == _RETAINED
        tuning = Tuning(
            encoder=model,
            folder=folder,
            tuned_for=TunedFor.of(retriever.index, model),
            frontier=frontier,
            selection=selection,
            target=_or(target, TARGET_WITH_LABELS, TARGET_WITHOUT_LABELS, labelled),
            strategy=STRATEGY,
            measured=len(trial.scores),
            selecting=len(sample.selecting),
            altered=sample.altered,
            escalation=escalation,
            scales={str(each): scale for each, scale in reporting.scales.items()},
            cutoff=_cutoff(retriever, sample, (trial, reporting), max_false_accepts),
        )
        tuning.store()
        journal.forget()
    return tuning


def _settings(retriever: Retriever, sample: Sample, k: int) -> dict[str, Any]:
    """Whatever changes a score: who asks what of whom, and in which precision."""
    model = whole(retriever.encoder)
    return {
        "pixels": hashlib.sha256(sample.selecting.pixels.tobytes()).hexdigest(),
        "wanted": [hashlib.sha256(t.tobytes()).hexdigest() for t in sample.selecting.wanted],
        "k": k,
        "strategy": [STRATEGY, KEPT],
        "precision": describe_precision(model),
        **msgspec.structs.asdict(TunedFor.of(retriever.index, model)),
    }


def _search(retriever: Retriever, sample: Sample, k: int, journal: Journal) -> Trial:
    """Measure candidates on the selecting queries; go on where a run stopped."""
    with journal:
        trial = Trial(
            retriever, sample.selecting, k, known=journal.known, on_progress=journal.advance
        )
        journal.scores = trial.scores
        ask_candidates(trial)
    return trial


def _escalation(
    retriever: Retriever,
    sample: Sample,
    reported: Sequence[Submodel],
    max_loss: float | None,
    certainty: float,
) -> Escalation | None:
    """Set the thresholds of the per-query choice, with some of the reported submodels to start."""
    labelled = sample.has_labels
    exact = [each for each in reported if not each.int8]  # 8 bits share nothing to go on with
    return set_thresholds(
        lambda asked, rungs: reply(retriever, asked, rungs, uses_labels=labelled),
        sample,
        ladders(whole(retriever.encoder), exact[:: max(1, len(exact) // _STARTS)]),
        max_loss=_or(max_loss, MAX_LOSS_WITH_LABELS, MAX_LOSS_WITHOUT_LABELS, labelled),
        certainty=certainty,
    )


def _cutoff(
    retriever: Retriever, sample: Sample, asked: tuple[Trial, Trial], max_false_accepts: float
) -> Cutoff | None:
    """Propose a cut-off, chosen by the selecting queries; without labels only altered ones can."""
    if not (sample.has_labels or sample.altered):
        return None
    choosing, reporting = (
        best_scores(retriever.index, queries.wanted, trial.full, has_labels=sample.has_labels)
        for queries, trial in zip((sample.selecting, sample.reporting), asked, strict=True)
    )
    right: Literal["label", "same image"] = "label" if sample.has_labels else "same image"
    return choose_cutoff(choosing, reporting, right, max_false_accepts)


def _of_one_metric(
    frontier: ParetoFrontier, selection: ParetoFrontier, k: int
) -> tuple[ParetoFrontier, ParetoFrontier]:
    """Go by the overlap where only one of the two has a hit rate to go by: the other never hits."""
    if selection.metric == frontier.metric:
        return frontier, selection
    first, second = (
        ParetoFrontier(each, metric=f"overlap@{k}", conditions=each.conditions)
        for each in (frontier, selection)
    )
    return first, second


def _check(
    k: int, images: int, target: float | None, max_loss: float | None, certainty: float
) -> None:
    if not 1 <= k <= max(images, FEWEST):  # too few images have an error of their own
        raise ValueError(f"k must be within 1..{images}, the images of the index; got {k}")
    if target is not None and not 0 < target < 1:
        raise ValueError(f"target must be above 0 and below 1, got {target}")
    check_bound(MAX_LOSS_WITH_LABELS if max_loss is None else max_loss, certainty)


def _or(given: float | None, with_labels: float, without: float, labelled: bool) -> float:
    return given if given is not None else with_labels if labelled else without


def _worth_reporting(model: Encoder, searched: Mapping[Submodel, Score]) -> list[Submodel]:
    """Return the trained sizes, 8 bits too, and the others that nothing cheaper matches."""
    front, best = [], -1.0
    for submodel, score in searched.items():
        assert score.overlap is not None
        if score.overlap > best and not submodel.int8:
            front.append(submodel)
            best = score.overlap
    rounded = [submodel for submodel in searched if submodel.int8]
    kept = {*trained_sizes(model.config), *spread(model.config, front, _REPORTED), *rounded}
    return sorted(kept, key=lambda each: (count_macs(model.config, each), each.sort_key))


def _report(
    model: Encoder, trial: Trial, queries: int, submodels: Sequence[Submodel], k: int
) -> list[OperatingPoint]:
    """Measure submodels on the queries of a trial."""
    scores = dict(zip(submodels, trial.ask(submodels), strict=True))
    full = scores[model.submodel()]
    return [
        OperatingPoint(
            **costs_of(model, submodel),
            queries=queries,
            k=k,
            hit_rate_at_1=score.hit_rate,
            overlap_at_k=score.overlap or 0.0,
            retained_hit_rate_at_1=retained(score.hit_rate, full.hit_rate)
            if score.hit_rate is not None and full.hit_rate
            else None,
        )
        for submodel, score in scores.items()
    ]


def _conditions(retriever: Retriever, sample: Sample) -> Conditions:
    wanted = sample.reporting.wanted
    return conditions_of(
        retriever,
        queries=len(sample.reporting),
        unreadable=sample.unreadable,
        without_relevant=int((wanted.total == 0).sum()) if sample.has_labels else None,
        in_index=int((wanted.own >= 0).any(axis=1).sum()),
    )
