"""Queries that choose for themselves against one size for all, on queries that tuned neither.

    python benchmarks/per_query.py --index INDEX --queries IMAGES [--encoder NAME] [--name NAME]

A fifth of the queries chooses the ladder, three tenths calibrate it, half of them report. With
labels a first hit is right if it has the query's label; without, if it is the full encoder's.
`voting` are the same static submodels, but with the hit whose label has the most weight among the
ten (similarity exp(20 s)) put first: what the labels of the hits are worth without escalation.
`aimed_at_points_lost` are the thresholds that lose so little on the calibrating queries, without
any certainty, and what they cost and lose on the reporting ones. Milliseconds are those of single
queries, all ways in turns; escalation also searches once per step.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import provenance, without_paths, write_result
from queries import concatenate

from indexing import Corpus, ImageIndex
from matvit import (
    DEFAULT_ENCODER,
    ContinuedEmbedding,
    MatViT,
    Submodel,
    count_macs,
    embed,
    embed_each,
    resolve_device,
)
from matvit.embedding import Precision
from retrieval import Escalation, Retriever
from retrieval.ground_truth import find_others
from retrieval.tuning import threshold
from retrieval.tuning.auto import RANKS, escalate
from retrieval.tuning.candidates import paper_rule
from retrieval.tuning.sample import Queries, Sample, draw_sample
from retrieval.tuning.threshold import Replies, curve, ladders, reply, set_thresholds

BOUNDS = {True: (0.02, 0.01), False: (0.3, 0.2, 0.1)}
LOST = (0.001, 0.005)
TIMED = 60
CERTAINTY = 0.9


class Remembered:
    """Embeds as `embed_each` does, but nothing twice: the same queries are asked many times."""

    def __init__(self) -> None:
        self._vectors: dict[tuple[str, Submodel], NDArray[np.float32]] = {}

    def __call__(
        self,
        model: MatViT,
        pixels: NDArray[np.uint8],
        submodels: Sequence[Submodel],
        *,
        precision: Precision = "auto",
    ) -> Iterator[tuple[Submodel, NDArray[np.float32]]]:
        """Yield each distinct submodel and its vectors."""
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        distinct = list(dict.fromkeys(submodels))
        missing = [each for each in distinct if (digest, each) not in self._vectors]
        for submodel, vectors in embed_each(model, pixels, missing, precision=precision):
            self._vectors[digest, submodel] = vectors
        yield from ((each, self._vectors[digest, each]) for each in distinct)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--queries", required=True)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--size", type=int, default=6000)
    parser.add_argument("--name", default="per_query")
    given = parser.parse_args()

    model = MatViT.load(given.encoder, device=resolve_device("auto"))
    retriever = Retriever(model, ImageIndex.open(given.index, model))
    threshold.embed_each = Remembered()  # type: ignore[assignment]
    drawn = draw_sample(retriever, Corpus.open(given.queries), size=given.size)
    result = {
        **provenance("python benchmarks/per_query.py " + without_paths(sys.argv[1:])),
        "encoder": model.name,
        "fingerprint": model.fingerprint,
        "images": len(retriever.index),
        "with_labels": _compare(retriever, _divided(drawn, has_labels=True)),
        "without_labels": _compare(retriever, _divided(drawn, has_labels=False)),
        "continued": _continued(model, drawn.reporting),
    }
    write_result(given.name, result)


def _compare(retriever: Retriever, sample: Sample) -> dict[str, Any]:
    """Compare escalation with static submodels, with or without labels."""
    model = retriever.encoder
    assert isinstance(model, MatViT)

    def ask(queries: Queries, rungs: Sequence[Submodel]) -> Replies:
        return reply(retriever, queries, rungs, uses_labels=sample.has_labels)

    candidates = ladders(model)
    found = {
        bound: set_thresholds(ask, sample, candidates, max_loss=bound, certainty=CERTAINTY)
        for bound in BOUNDS[sample.has_labels]
    }
    static = paper_rule(model.config)
    kept = {each for one in found.values() if one for each in map(model.submodel, one.ladder)}
    replies = reply(retriever, sample.reporting, [*static, *kept], uses_labels=sample.has_labels)
    full = replies.right[model.submodel()]
    rows = [_static_row(model, replies, each) for each in static]
    voting = _voting(retriever, sample.reporting, static) if sample.has_labels else {}
    for row in rows:
        row["voting"] = voting.get(row["submodel"])
    return {
        "selecting": len(sample.selecting),
        "calibrating": len(sample.bounding),
        "reporting": replies.queries,
        "full": float(full.mean()),
        "static": sorted(rows, key=lambda row: row["macs_fraction"]),
        "auto": [
            _auto_row(retriever, sample, ask, replies, bound, one) for bound, one in found.items()
        ],
    }


def _static_row(model: MatViT, replies: Replies, submodel: Submodel) -> dict[str, Any]:
    lost = replies.right[model.submodel()] - replies.right[submodel]
    return {
        "submodel": str(submodel),
        "macs_fraction": count_macs(model.config, submodel)
        / count_macs(model.config, model.submodel()),
        "right": float(replies.right[submodel].mean()),
        "lost": float(lost.mean()),
        "lost_error": _error(lost),
    }


def _auto_row(
    retriever: Retriever,
    sample: Sample,
    ask: Any,  # noqa: ANN401
    replies: Replies,
    bound: float,
    found: Escalation | None,
) -> dict[str, Any]:
    if found is None:
        return {"max_loss": bound, "ladder": None}
    model = retriever.encoder
    assert isinstance(model, MatViT)
    ladder = tuple(map(model.submodel, found.ladder))
    operation, lost = replies.operate(ladder, found.thresholds)
    operations = curve(ask(sample.selecting, ladder), ladder)
    points = [replies.operate(ladder, each.thresholds, each.level)[0] for each in operations]
    bounding = ask(sample.bounding, ladder)
    chosen = {}
    for limit in LOST:
        tried = [bounding.operate(ladder, each.thresholds, each.level)[0] for each in operations]
        good = [each for each in tried if each.lost <= limit]
        best = min(good, key=lambda each: each.macs_fraction)  # always going on loses least
        realised, _ = replies.operate(ladder, best.thresholds)
        chosen[f"{100 * limit:g}"] = [realised.macs_fraction, realised.lost]
    return {
        "max_loss": bound,
        "certainty": CERTAINTY,
        "ladder": list(found.ladder),
        "thresholds": list(found.thresholds),
        "macs_fraction": operation.macs_fraction,
        "right": float(replies.right[model.submodel()].mean() - operation.lost),
        "lost": operation.lost,
        "lost_error": _error(lost),
        "aimed_at_points_lost": chosen,
        "curve": [[each.macs_fraction, each.lost] for each in points],
        "goes_on": found.goes_on,
        "milliseconds": _time(retriever, sample.reporting, found),
    }


def _time(retriever: Retriever, queries: Queries, found: Escalation) -> dict[str, float]:
    """Mean milliseconds of one query alone: static sizes and escalation in turns."""
    model = retriever.encoder
    assert isinstance(model, MatViT)
    labels = retriever.index.labels
    spent: dict[str, list[float]] = {}
    for query in range(-3, min(TIMED, len(queries))):  # the first few only warm up
        image = queries.pixels[abs(query) : abs(query) + 1]
        (answer,) = escalate(
            found,
            model,
            image,
            lambda vectors: retriever.index.search(vectors, RANKS),
            lambda ids: labels[retriever.index.rows_of(ids)],
        )
        times = {
            "auto": sum(step.encode_ms for step in answer.steps),
            "auto searches": sum(step.search_ms for step in answer.steps),
            "one search": answer.steps[0].search_ms,
        }
        for size in ("S", "M", "L", "XL"):
            start = perf_counter()
            embed(model, image, size)
            times[size] = 1000 * (perf_counter() - start)
        for name, ms in times.items() if query >= 0 else ():
            spent.setdefault(name, []).append(ms)
    return {name: float(np.mean(ms)) for name, ms in spent.items()}


def _voting(
    retriever: Retriever, queries: Queries, submodels: Sequence[Submodel]
) -> dict[str, float]:
    """Hit rate with the best-supported label put first."""
    model = retriever.encoder
    assert isinstance(model, MatViT)
    judged = queries.take(np.flatnonzero(queries.wanted.total > 0))
    of_rows = np.append(retriever.index.labels, -1)
    rates = {}
    for submodel, vectors in embed_each(model, judged.pixels, submodels):
        rows, scores = find_others(retriever.index, vectors, judged.wanted.own, RANKS)
        labels = of_rows[rows]
        weight = np.exp(20 * (scores - scores[:, :1]))
        support = [(weight * (labels == labels[:, j : j + 1])).sum(axis=1) for j in range(RANKS)]
        chosen = np.take_along_axis(labels, np.argmax(support, axis=0)[:, None], axis=1)[:, 0]
        rates[str(submodel)] = float((chosen == judged.wanted.labels).mean())
    return rates


def _continued(model: MatViT, queries: Queries) -> list[dict[str, Any]]:
    """What going on saves against starting again, for single queries."""
    rows = []
    depth = model.config.depth
    for first, second in (
        ("S", f"{depth // 2}xS,{depth - depth // 2}xXL"),
        ("M", f"{depth // 2}xM,{depth - depth // 2}xXL"),
        ("S", "XL"),
    ):
        again, goes_on, worst = [], [], 0.0
        for query in range(-3, min(TIMED, len(queries))):
            image = queries.pixels[abs(query) : abs(query) + 1]
            images = ContinuedEmbedding(model, image)
            images.embed(first)
            start = perf_counter()
            continued = images.embed(second)
            middle = perf_counter()
            direct = embed(model, image, second)
            end = perf_counter()
            worst = max(worst, float(np.abs(continued - direct).max()))
            if query >= 0:
                goes_on.append(middle - start)
                again.append(end - middle)
        images = ContinuedEmbedding(model, queries.pixels[:1])
        images.embed(first)
        rows.append(
            {
                "first": first,
                "second": second,
                "macs": count_macs(model.config, model.submodel(second)),
                "added_macs": images.added_macs(second),
                "ms": 1000 * float(np.median(again)),
                "added_ms": 1000 * float(np.median(goes_on)),
                "largest_difference": worst,
            }
        )
    return rows


def _divided(drawn: Sample, *, has_labels: bool) -> Sample:
    """Divide the queries anew: a fifth, three tenths and a half."""
    every = concatenate([drawn.selecting, drawn.bounding, drawn.reporting])
    ends = [len(every) // 5, len(every) // 2]
    selecting, bounding, reporting = (
        every.take(rows) for rows in np.split(np.arange(len(every)), ends)
    )
    return Sample(
        selecting=selecting,
        bounding=bounding,
        reporting=reporting,
        altered=drawn.altered,
        has_labels=has_labels,
        unreadable=drawn.unreadable,
    )


def _error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


if __name__ == "__main__":
    main()
