"""Ways to search the submodels, compared by what their choices retrieve on other queries.

    python benchmarks/strategies.py --index INDEX --queries IMAGES [--encoder NAME] [--name NAME]

Every strategy chooses on the same selecting queries, by overlap@10, the best submodel for each
budget; all choices are then measured on other queries. Differences to the paper's rule come with
their standard errors, query by query. A submodel counts as measured if the strategy had the
queries embedded with it; how it would have gone without sharing with the other strategies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import provenance, without_paths, write_result
from queries import concatenate
from search_strategies import STRATEGIES

from indexing import Corpus, ImageIndex
from matvit import DEFAULT_ENCODER, MatViT, Submodel, count_macs, embed, embed_each, resolve_device
from retrieval import Retriever, metrics
from retrieval.ground_truth import find_others
from retrieval.tuning.journal import Score
from retrieval.tuning.sample import Queries, draw_sample
from retrieval.tuning.trial import Trial, hits

K = 10
BUDGETS = (0.45, 0.5, 0.6, 0.7, 0.8, 0.9)
REFERENCE = "paper"


class CountingTrial(Trial):
    """A trial that notes which submodels were wanted, though others may have measured them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, **options)
        self.wanted: set[Submodel] = set()
        self.asked: set[Submodel] = set()

    def distortions(self, submodels: Iterable[Submodel]) -> list[float]:
        """Note what is embedded."""
        chosen = list(submodels)
        self.wanted |= set(chosen)
        return super().distortions(chosen)

    def ask(self, submodels: Iterable[Submodel]) -> list[Score]:
        """Note what asks the index."""
        chosen = list(submodels)
        self.wanted |= set(chosen)
        self.asked |= set(chosen)
        return super().ask(chosen)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--queries", required=True)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--size", type=int, default=4000, help="queries: a quarter of them selects")
    parser.add_argument("--only", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--name", default="strategies")
    given = parser.parse_args()

    model = MatViT.load(given.encoder, device=resolve_device("auto"))
    retriever = Retriever(model, ImageIndex.open(given.index, model))
    sample = draw_sample(retriever, Corpus.open(given.queries), size=given.size)
    reporting = concatenate([sample.bounding, sample.reporting])
    found: dict[str, dict[str, Any]] = {}
    known: dict[Submodel, Score] = {}
    for name in given.only:
        found[name] = _choose(retriever, sample.selecting, STRATEGIES[name], known)
        print(name, found[name]["measured"], file=sys.stderr)
    measured = _measure(
        retriever, reporting, {each for one in found.values() for each in one["picks"]}
    )
    result = {
        **provenance("python benchmarks/strategies.py " + without_paths(sys.argv[1:])),
        "encoder": model.name,
        "fingerprint": model.fingerprint,
        "images": len(retriever.index),
        "selecting": len(sample.selecting),
        "reporting": len(reporting),
        "k": K,
        "rows": _rows(model, found, measured),
    }
    write_result(given.name, result)


def _choose(
    retriever: Retriever,
    queries: Queries,
    ask: Callable[[Trial], None],
    known: dict[Submodel, Score],
) -> dict[str, Any]:
    """Run a strategy, and pick its best within each budget."""
    trial = CountingTrial(retriever, queries, K, known=known)
    ask(trial)
    known.update(trial.scores)
    full = count_macs(
        trial.config,
        Submodel((trial.config.hidden_dim,) * trial.config.depth, trial.config.hidden_dim),
    )
    picks = []
    for budget in BUDGETS:
        fitting = [each for each in trial.asked if count_macs(trial.config, each) <= budget * full]
        picks.append(
            max(fitting, key=lambda each: (trial.scores[each].overlap or 0.0, -sum(each.widths)))
            if fitting
            else None
        )
    return {
        "picks": picks,
        "measured": len(trial.wanted),
        "asked": len(trial.asked),
    }


def _measure(
    retriever: Retriever, queries: Queries, submodels: set[Submodel | None]
) -> dict[Submodel, tuple[NDArray[np.float64], NDArray[np.float64] | None]]:
    """Overlap and hit rate of each submodel, query by query."""
    model = retriever.encoder
    assert isinstance(model, MatViT)
    own = queries.wanted.own
    reference, _ = find_others(retriever.index, embed(model, queries.pixels), own, K)
    measured = {}
    for submodel, vectors in embed_each(model, queries.pixels, [s for s in submodels if s]):
        rows, _ = find_others(retriever.index, vectors, own, K)
        measured[submodel] = (metrics.overlap(rows, reference, K), hits(retriever, rows, queries))
    return measured


def _rows(
    model: MatViT,
    found: dict[str, dict[str, Any]],
    measured: dict[Submodel, tuple[NDArray[np.float64], NDArray[np.float64] | None]],
) -> list[dict[str, Any]]:
    full = count_macs(model.config, model.submodel())
    rows = []
    for name, one in found.items():
        for budget, pick, base in zip(
            BUDGETS, one["picks"], found[REFERENCE]["picks"], strict=True
        ):
            if pick is None:
                continue
            overlap, hit = measured[pick]
            difference, error = _difference(overlap, measured[base][0])
            row = {
                "strategy": name,
                "measured": one["measured"],
                "asked": one["asked"],
                "budget": budget,
                "submodel": str(pick),
                "macs_fraction": count_macs(model.config, pick) / full,
                "overlap@10": float(overlap.mean()),
                "overlap_minus_paper": difference,
                "overlap_error": error,
            }
            if hit is not None:
                row["hit_rate@1"] = float(np.nanmean(hit))
                reference = measured[base][1]
                assert reference is not None
                row["hit_rate_minus_paper"], row["hit_rate_error"] = _difference(hit, reference)
            rows.append(row)
    return rows


def _difference(values: NDArray[np.float64], reference: NDArray[np.float64]) -> tuple[float, float]:
    """Mean difference of the same queries and its standard error."""
    difference = values - reference
    difference = difference[~np.isnan(difference)]
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


if __name__ == "__main__":
    main()
