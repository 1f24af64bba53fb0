"""Does a stored frontier tell what other queries will find, and are milliseconds kept?

    python benchmarks/tuned.py --index INDEX --queries IMAGES --work WORK [--name NAME]

A copy of the index in WORK is tuned on altered images of itself, as `matvit tune` does it; then
queries that are not in it are asked with every submodel of the stored frontier, and what was
predicted is compared with what came. For budgets between the fastest and the slowest submodel, the
one that is picked is timed anew, a query at a time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from provenance import provenance, without_paths, write_result

from indexing import Corpus, ImageIndex
from matvit import DEFAULT_ENCODER, MatViT, resolve_device
from retrieval import ParetoFrontier, Retriever, Tuning, evaluate, measure_speed, measured_ms, tune

BUDGETS = 6


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--queries", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--asked", type=int, default=1000, help="queries that are held out")
    parser.add_argument("--name", default="tuned")
    given = parser.parse_args()

    model = MatViT.load(given.encoder, device=resolve_device("auto"))
    copy = given.work / f"{given.name}.index"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(given.index, copy)
    retriever = Retriever(model, ImageIndex.open(copy, model))
    start = perf_counter()
    tuning = tune(retriever, size=given.size, latency=False, progress=True)
    seconds = perf_counter() - start
    queries = Corpus.open(given.queries)
    rows = np.sort(np.random.default_rng(1).permutation(len(queries))[: given.asked])
    names = [point.submodel for point in tuning.frontier]
    realised = evaluate(retriever, queries.subset(rows), names, latency_queries=0, progress=True)
    result = {
        **provenance("python benchmarks/tuned.py " + without_paths(sys.argv[1:])),
        "encoder": model.name,
        "fingerprint": model.fingerprint,
        "images": len(retriever.index),
        "seconds": round(seconds, 1),
        "measured": tuning.measured,
        "tuned_with": given.size,
        "predicted_from": tuning.frontier.conditions.queries if tuning.frontier.conditions else 0,
        "asked": len(rows),
        "recommended": tuning.summary,
        "rows": _rows(tuning.frontier, realised),
        "budgets": _budgets(tuning, model),
    }
    shutil.rmtree(copy)
    write_result(given.name, result)


def _rows(predicted: ParetoFrontier, realised: ParetoFrontier) -> list[dict[str, Any]]:
    """Put what was predicted beside what came."""
    rows = []
    for point in predicted:
        came = realised.point_of(point.submodel)
        row: dict[str, Any] = {
            "submodel": point.submodel,
            "macs_fraction": point.macs_fraction,
            "predicted_overlap": point.overlap_at_k,
            "realised_overlap": came.overlap_at_k,
        }
        if point.retained_hit_rate_at_1 is not None and came.retained_hit_rate_at_1 is not None:
            row["predicted_retained"] = point.retained_hit_rate_at_1
            row["realised_retained"] = came.retained_hit_rate_at_1
        rows.append(row)
    return rows


def _budgets(tuning: Tuning, model: MatViT) -> list[dict[str, Any]]:
    """Pick by milliseconds, and time what was picked anew."""
    submodels = [model.submodel(point.submodel) for point in tuning.frontier]
    known = measured_ms(model, submodels, again=True)
    side = model.preprocess.img_size
    picture = np.zeros((1, side, side, 3), dtype=np.uint8)
    rows = []
    for budget in np.linspace(min(known.values()), max(known.values()), BUDGETS):
        chosen = tuning.choose(max_ms=float(budget))
        (speed,) = measure_speed(model, [chosen], picture, latency_queries=50, batches=0)
        rows.append(
            {
                "max_ms": float(budget),
                "submodel": str(chosen),
                "predicted_ms": known[str(chosen)],
                "measured_ms": speed.latency_ms_p50,
            }
        )
    return rows


if __name__ == "__main__":
    main()
