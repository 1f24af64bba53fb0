"""Recall against compute: ask an index the same queries with every submodel, and compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from indexing import NEARLY_SAME, Corpus, DecodedBatch, Decoders, Failure, ImageRecord
from matvit import Encoder, Granularity, Submodel, count_macs, count_params, embed, progress_of
from retrieval import metrics
from retrieval.disagreement import Evaluation
from retrieval.frontier import Conditions, OperatingPoint, ParetoFrontier
from retrieval.ground_truth import GroundTruth, Wanted, find_others
from retrieval.retriever import Retriever
from retrieval.speed import Speed, describe_precision, disorder, measure_speed

_QUERIES_PER_BATCH = 1024  # FAISS takes a third of the time per query that it takes with 256
_CELLS_PER_TABLE = 1 << 22  # 32 MB of row numbers, however many images are relevant
_TIMED_TOGETHER = 256


class _Quality(NamedTuple):
    """Every metric of one submodel, one value per query, NaN where it cannot be judged."""

    hit_rate_at_1: Float[np.ndarray, " queries"]
    recall_at_k: Float[np.ndarray, " queries"]
    map_at_r: Float[np.ndarray, " queries"]
    overlap_at_k: Float[np.ndarray, " queries"]

    @classmethod
    def concatenate(cls, parts: Sequence[_Quality]) -> _Quality:
        """Join the queries of several batches."""
        return cls(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def of(self, queries: Bool[np.ndarray, " queries"]) -> _Quality:
        """Keep some of the queries."""
        return _Quality(*(values[queries] for values in self))


_Found = tuple[Submodel, Int64[np.ndarray, "queries ranks"], Float32[np.ndarray, "queries ranks"]]


@dataclass
class _Tally:
    """What came out so far."""

    qualities: dict[Submodel, list[_Quality]]
    rows: dict[Submodel, list[Int64[np.ndarray, "queries k"]]]
    twins: list[Bool[np.ndarray, " queries"]] = field(default_factory=list)
    records: list[ImageRecord] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    queries: int = 0
    in_index: int = 0
    without_relevant: int = 0
    sample: UInt8[np.ndarray, "images height width 3"] | None = None

    def count(self, batch: DecodedBatch, wanted: Wanted) -> None:
        """Add a batch that has been asked."""
        self.queries += len(batch.records)
        self.records += batch.records
        self.in_index += int((wanted.own >= 0).any(axis=1).sum())
        self.without_relevant += int((wanted.total == 0).sum())
        if self.sample is None:
            self.sample = batch.pixels[:_TIMED_TOGETHER].copy()


def evaluate(
    retriever: Retriever,
    queries: Corpus,
    submodels: Iterable[Submodel | Granularity | str],
    k: int = 10,
    *,
    latency_queries: int = 50,
    progress: bool = False,
) -> ParetoFrontier:
    """Measure what submodels cost and what they find.

    A query's relevant images are those of its class, matched by name. A query that is in the
    index itself, byte for byte, never counts among its own hits. Queries are decoded once and
    judged a batch at a time: memory holds the pixels and the answers of one batch only.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> from indexing import ImageIndex
        >>> from matvit import load_encoder
        >>> folder, encoder = TemporaryDirectory(), load_encoder("matvit-tiny64")
        >>> for colour in ("red", "green", "blue"):
        ...     Image.new("RGB", (64, 64), colour).save(f"{folder.name}/{colour}.png")
        >>> photos = Corpus.open(folder.name)
        >>> index = ImageIndex.build(encoder, photos, f"{folder.name}/index")
        >>> retriever = Retriever(encoder, index)
        >>> frontier = evaluate(retriever, photos, ["S", "4xS,2xXL"], k=1, latency_queries=0)
        >>> [point.submodel for point in frontier], frontier.full.overlap_at_k
        (['S', '4xS,2xXL', 'XL'], 1.0)
        >>> folder.cleanup()

    Args:
        retriever: A whole encoder and its index.
        queries: Images to ask with. Without labels only the overlap with the full encoder's
            answers is measured.
        submodels: What to measure. The full encoder is always measured too, for comparison.
        k: Hits that recall and overlap look at.
        latency_queries: Images to time one by one; 0 leaves out latency and throughput.
        progress: Show a progress bar on stderr.

    Returns:
        One operating point per distinct submodel.

    Raises:
        ValueError: If k is below 1, a submodel is not one of the encoder's, no query can be
            read, or the encoder is an extracted submodel, which has no full size to compare to.
        IndexMismatchError: If the encoder has changed since the index was built.
    """
    asked = evaluate_queries(
        retriever, queries, submodels, k, latency_queries=latency_queries, progress=progress
    )
    return asked.frontier


def evaluate_queries(
    retriever: Retriever,
    queries: Corpus,
    submodels: Iterable[Submodel | Granularity | str],
    k: int = 10,
    *,
    latency_queries: int = 50,
    progress: bool = False,
) -> Evaluation:
    """Measure what submodels cost and what they find, and keep it query by query; see `evaluate`.

    A query has a twin if the full encoder finds an image of the index, other than the query
    itself, whose cosine with it is at least 0.98: whatever the size, that one is found.
    """
    if k < 1 or latency_queries < 0:
        raise ValueError(
            f"k must be at least 1 and latency_queries at least 0, got {k} and {latency_queries}"
        )
    encoder = retriever.encoder
    retriever.index.check_encoder(encoder)
    chosen = _full_first(encoder, submodels)
    truth = GroundTruth(retriever.index, queries.class_names)
    tally = _ask(retriever, truth, queries, chosen, k, progress=progress)
    qualities = _joined(tally, queries)
    speeds: Sequence[Speed | None] = [None] * len(chosen)
    if latency_queries and tally.sample is not None:
        speeds = measure_speed(
            encoder, chosen, tally.sample, latency_queries=latency_queries, progress=progress
        )
    conditions = conditions_of(
        retriever,
        queries=tally.queries,
        unreadable=len(tally.failures),
        without_relevant=tally.without_relevant if truth.has_labels else None,
        in_index=tally.in_index,
        twins=sum(int(part.sum()) for part in tally.twins),
    )
    measured = dict(zip(chosen, qualities, strict=True))
    frontier = _frontier(encoder, measured, k, speeds, conditions)
    return _evaluation(encoder, tally, measured, frontier, queries.class_names)


def _evaluation(
    encoder: Encoder,
    tally: _Tally,
    measured: dict[Submodel, _Quality],
    frontier: ParetoFrontier,
    class_names: Sequence[str] | None,
) -> Evaluation:
    """Put everything together, query by query."""
    k, twins = frontier.points[0].k, np.concatenate(tally.twins)
    labelled = any(point.map_at_r is not None for point in frontier)
    return Evaluation(
        frontier=frontier,
        without_twins=_without_twins(encoder, measured, frontier, twins),
        metric="map@r" if labelled else f"overlap@{k}",
        records=tuple(tally.records),
        class_names=None if class_names is None else tuple(class_names),
        twins=twins,
        rows={str(each): np.concatenate(parts) for each, parts in tally.rows.items()},
        reached={
            str(each): quality.map_at_r if labelled else quality.overlap_at_k
            for each, quality in measured.items()
        },
        overlaps={str(each): quality.overlap_at_k for each, quality in measured.items()},
        failures=tuple(tally.failures),
    )


def _without_twins(
    encoder: Encoder,
    measured: dict[Submodel, _Quality],
    frontier: ParetoFrontier,
    twins: Bool[np.ndarray, " queries"],
) -> ParetoFrontier | None:
    """Judge again without the queries that have a twin; None if there are none, or no others."""
    others = {submodel: quality.of(~twins) for submodel, quality in measured.items()}
    judged = next(iter(others.values())).overlap_at_k
    if not twins.any() or not np.isfinite(judged).any():
        return None
    assert frontier.conditions is not None
    fewer = replace(
        frontier.conditions, queries=len(judged), twins=0, in_index=0, without_relevant=None
    )
    return _frontier(encoder, others, frontier.points[0].k, [None] * len(others), fewer)


def _frontier(
    encoder: Encoder,
    qualities: dict[Submodel, _Quality],
    k: int,
    speeds: Sequence[Speed | None],
    conditions: Conditions,
) -> ParetoFrontier:
    """Put what was measured together, the full encoder first."""
    full = next(iter(qualities.values()))
    points = [
        _point(encoder, submodel, quality, full, k, speed)
        for (submodel, quality), speed in zip(qualities.items(), speeds, strict=True)
    ]
    conditions = replace(conditions, disorder=disorder(points) or "")
    return ParetoFrontier(points, conditions=conditions)


def conditions_of(
    retriever: Retriever,
    *,
    queries: int,
    unreadable: int,
    without_relevant: int | None,
    in_index: int,
    twins: int = 0,
) -> Conditions:
    """Say who asked what of whom, and where."""
    encoder = retriever.encoder
    return Conditions(
        encoder=encoder.name,
        fingerprint=encoder.fingerprint,
        images=len(retriever.index),
        queries=queries,
        unreadable=unreadable,
        without_relevant=without_relevant,
        in_index=in_index,
        twins=twins,
        device=encoder.runtime.place,
        precision=describe_precision(encoder),
        weights=encoder.weights_fingerprint,
        runtime=f"{encoder.runtime.library} {encoder.runtime.version}",
    )


def costs_of(encoder: Encoder, submodel: Submodel) -> dict[str, Any]:
    """Say what a submodel of an encoder costs, in the words of `OperatingPoint`."""
    macs = count_macs(encoder.config, submodel)
    return {
        "submodel": str(submodel),
        "macs": macs,
        "macs_fraction": macs / count_macs(encoder.config, encoder.submodel(None)),
        "params": count_params(encoder.config, submodel),
    }


def _full_first(
    encoder: Encoder, submodels: Iterable[Submodel | Granularity | str]
) -> list[Submodel]:
    """List the distinct submodels, led by the full one, which the others are compared to."""
    full = encoder.submodel(None)
    if not full.is_full:
        raise ValueError(
            f"submodels are compared to the full encoder, but {encoder.name} is only its "
            f"extracted submodel {full}; evaluate with the whole encoder"
        )
    return list(dict.fromkeys([full, *map(encoder.submodel, submodels)]))


def _ask(
    retriever: Retriever,
    truth: GroundTruth,
    queries: Corpus,
    submodels: Sequence[Submodel],
    k: int,
    *,
    progress: bool,
) -> _Tally:
    """Ask all queries with all submodels, and judge what they find."""
    tally = _Tally({each: [] for each in submodels}, {each: [] for each in submodels})
    ranks = max(k, truth.most_relevant)  # fewer queries at a time where MAP@R looks at many ranks
    batch_size = max(1, min(_QUERIES_PER_BATCH, _CELLS_PER_TABLE // ranks))
    preprocess, work = retriever.encoder.preprocess, len(queries) * len(submodels)
    with progress_of("evaluating", work, unit="img", shown=progress) as bar:
        for batch in queries.decode(preprocess, Decoders(batch_size=batch_size)):
            tally.failures += batch.failures
            bar.update(len(batch.failures) * len(submodels))
            if not batch.records:
                continue
            wanted = truth.wanted(batch.records)
            found = _find(retriever, batch.pixels, wanted, submodels, k)
            reference: Int64[np.ndarray, "queries ranks"] | None = None
            for submodel, rows, scores in found:
                if reference is None:
                    reference = rows
                    tally.twins.append(scores[:, 0] >= NEARLY_SAME)
                tally.rows[submodel].append(rows[:, :k].copy())
                tally.qualities[submodel].append(_judge(rows, reference, truth, wanted, k))
                bar.update(len(batch.records))
            tally.count(batch, wanted)
    return tally


def _find(
    retriever: Retriever,
    pixels: UInt8[np.ndarray, "queries height width 3"],
    wanted: Wanted,
    submodels: Sequence[Submodel],
    k: int,
) -> Iterator[_Found]:
    """Yield as many rows as the metrics look at: k, and for MAP@R all that are relevant."""
    ranks = max(k, int(wanted.total.max()))
    for submodel in submodels:
        vectors = embed(retriever.encoder, pixels, submodel)
        yield submodel, *find_others(retriever.index, vectors, wanted.own, ranks)


def _judge(
    rows: Int64[np.ndarray, "queries ranks"],
    reference: Int64[np.ndarray, "queries ranks"],
    truth: GroundTruth,
    wanted: Wanted,
    k: int,
) -> _Quality:
    """Compare what a submodel found with what is right, and with what the full encoder found."""
    relevant = metrics.relevance(truth.labels_of(rows), wanted.labels)
    return _Quality(
        hit_rate_at_1=metrics.hit_rate(relevant, wanted.total, 1),
        recall_at_k=metrics.recall(relevant, wanted.total, k),
        map_at_r=metrics.map_at_r(relevant, wanted.total),
        overlap_at_k=metrics.overlap(rows, reference, k),
    )


def _joined(tally: _Tally, queries: Corpus) -> list[_Quality]:
    """Join the batches of each submodel, the full one first.

    Raises:
        ValueError: If no query was asked, or there was nothing for it to find.
    """
    if not tally.queries:
        reasons = [f"; {failure.path}: {failure.message}" for failure in tally.failures[:1]]
        raise ValueError(f"none of the {len(queries):,} queries could be read{''.join(reasons)}")
    qualities = [_Quality.concatenate(parts) for parts in tally.qualities.values()]
    if np.isnan(qualities[0].overlap_at_k).all():
        raise ValueError("nothing to find: the index holds only the image that is asked with")
    return qualities


def _point(
    encoder: Encoder,
    submodel: Submodel,
    quality: _Quality,
    full: _Quality,
    k: int,
    speed: Speed | None,
) -> OperatingPoint:
    """Put cost, quality and speed of a submodel together."""
    hit_rate = metrics.summarize(quality.hit_rate_at_1).mean
    full_hit_rate = metrics.summarize(full.hit_rate_at_1).mean
    return OperatingPoint(
        **costs_of(encoder, submodel),
        queries=len(quality.overlap_at_k),
        k=k,
        hit_rate_at_1=_known(hit_rate),
        recall_at_k=_known(metrics.summarize(quality.recall_at_k).mean),
        map_at_r=_known(metrics.summarize(quality.map_at_r).mean),
        overlap_at_k=metrics.summarize(quality.overlap_at_k).mean,
        retained_hit_rate_at_1=_known(metrics.retained(hit_rate, full_hit_rate)),
        latency_ms_p50=speed.latency_ms_p50 if speed else None,
        latency_ms_p95=speed.latency_ms_p95 if speed else None,
        images_per_s=speed.images_per_s if speed else None,
    )


def _known(value: float) -> float | None:
    """Turn what could not be measured from NaN, which JSON does not have, into None."""
    return None if math.isnan(value) else value
