"""Recall against compute: ask an index the same queries with every submodel, and compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from indexing import Corpus, DecodedBatch, Failure
from matvit import Encoder, Granularity, Submodel, count_macs, count_params, resolve_precision
from retrieval.frontier import ParetoFrontier
from retrieval.ground_truth import GroundTruth, Wanted
from retrieval.judge import Judge, Quality
from retrieval.latency import describe_device
from retrieval.metrics import retained, summarize
from retrieval.operating_point import Conditions, OperatingPoint
from retrieval.retriever import Retriever
from retrieval.speed import Speed, measure_speed

_TIMED_TOGETHER = 256


@dataclass
class _Tally:
    """What came out so far."""

    qualities: dict[Submodel, list[Quality]]
    failures: list[Failure] = field(default_factory=list)
    queries: int = 0
    in_index: int = 0
    without_relevant: int = 0
    sample: UInt8[np.ndarray, "images height width 3"] | None = None

    def count(self, batch: DecodedBatch, wanted: Wanted) -> None:
        """Add a batch that has been asked."""
        self.queries += len(batch.records)
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
    if k < 1 or latency_queries < 0:
        raise ValueError(
            f"k must be at least 1 and latency_queries at least 0, got {k} and {latency_queries}"
        )
    encoder = retriever.encoder
    retriever.index.check_encoder(encoder)
    chosen = _full_first(encoder, submodels)
    truth = GroundTruth(retriever.index, queries.class_names)
    tally = _ask(Judge(retriever, truth, k), queries, chosen, progress=progress)
    qualities = _qualities(tally, queries)
    speeds: Sequence[Speed | None] = [None] * len(chosen)
    if latency_queries and tally.sample is not None:
        speeds = measure_speed(
            encoder, chosen, tally.sample, latency_queries=latency_queries, progress=progress
        )
    points = [
        _point(encoder, submodel, quality, qualities[0], k, speed)
        for submodel, quality, speed in zip(chosen, qualities, speeds, strict=True)
    ]
    return ParetoFrontier(points, conditions=_conditions(retriever, truth, tally))


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


def _ask(judge: Judge, queries: Corpus, submodels: Sequence[Submodel], *, progress: bool) -> _Tally:
    """Ask all queries with all submodels."""
    tally = _Tally({submodel: [] for submodel in submodels})
    work = len(queries) * len(submodels)
    with tqdm(total=work, desc="evaluating", unit="img", disable=not progress) as bar:
        for batch in queries.decode(judge.preprocess, batch_size=judge.batch_size):
            tally.failures += batch.failures
            bar.update(len(batch.failures) * len(submodels))
            if not batch.records:
                continue
            wanted = judge.truth.wanted(batch.records)
            qualities = judge.qualities(batch.pixels, wanted, submodels)
            for submodel, quality in zip(submodels, qualities, strict=True):
                tally.qualities[submodel].append(quality)
                bar.update(len(batch.records))
            tally.count(batch, wanted)
    return tally


def _qualities(tally: _Tally, queries: Corpus) -> list[Quality]:
    """Join the batches of each submodel, the full one first.

    Raises:
        ValueError: If no query was asked, or there was nothing for it to find.
    """
    if not tally.queries:
        reasons = [f"; {failure.path}: {failure.message}" for failure in tally.failures[:1]]
        raise ValueError(f"none of the {len(queries):,} queries could be read{''.join(reasons)}")
    qualities = [Quality.concatenate(parts) for parts in tally.qualities.values()]
    if np.isnan(qualities[0].overlap_at_k).all():
        raise ValueError("nothing to find: the index holds only the image that is asked with")
    return qualities


def _point(
    encoder: Encoder,
    submodel: Submodel,
    quality: Quality,
    full: Quality,
    k: int,
    speed: Speed | None,
) -> OperatingPoint:
    """Put cost, quality and speed of a submodel together."""
    macs = count_macs(encoder.config, submodel)
    hit_rate = summarize(quality.hit_rate_at_1).mean
    return OperatingPoint(
        submodel=str(submodel),
        macs=macs,
        macs_fraction=macs / count_macs(encoder.config, encoder.submodel(None)),
        params=count_params(encoder.config, submodel),
        queries=len(quality.overlap_at_k),
        k=k,
        hit_rate_at_1=_known(hit_rate),
        recall_at_k=_known(summarize(quality.recall_at_k).mean),
        map_at_r=_known(summarize(quality.map_at_r).mean),
        overlap_at_k=summarize(quality.overlap_at_k).mean,
        retained_hit_rate_at_1=_known(retained(hit_rate, summarize(full.hit_rate_at_1).mean)),
        latency_ms_p50=speed.latency_ms_p50 if speed else None,
        latency_ms_p95=speed.latency_ms_p95 if speed else None,
        images_per_s=speed.images_per_s if speed else None,
    )


def _known(value: float) -> float | None:
    """Turn what could not be measured from NaN, which JSON does not have, into None."""
    return None if math.isnan(value) else value


def _conditions(retriever: Retriever, truth: GroundTruth, tally: _Tally) -> Conditions:
    """Say who asked what of whom, and where."""
    encoder = retriever.encoder
    return Conditions(
        encoder=encoder.name,
        fingerprint=encoder.fingerprint,
        images=len(retriever.index),
        queries=tally.queries,
        unreadable=len(tally.failures),
        without_relevant=tally.without_relevant if truth.has_labels else None,
        in_index=tally.in_index,
        device=describe_device(encoder.device),
        precision=describe_precision(encoder.device),
        weights=encoder.weights_fingerprint,
    )


def describe_precision(device: torch.device) -> str:
    """Name the format of matrix products; single images may have one of their own."""
    many, one = (
        str(resolve_precision(device, images=count)).removeprefix("torch.") for count in (None, 1)
    )
    return many if many == one else f"{many}, single images {one}"
