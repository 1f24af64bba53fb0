"""What is found for how much compute: with widths alone, and with merging of tokens too.

    python benchmarks/two_axes.py --work WORK [--images IMAGES --queries QUERIES] [--name NAME]

IMAGES are indexed at full size in WORK, and some of QUERIES ask; by default both are scikit-learn's
digits, as in `matvit demo`. Submodels are searched as `matvit tune` searches them, once along the
widths alone. For every budget of compute each search picks what found most on a third of the
queries; what the picks find is measured on the others. `--indexed 5000 --asked 800` takes minutes
on two cores; without them all images are indexed, and 4,000 ask.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from digits import write_digits
from provenance import provenance, without_paths, write_result
from tiny_imagenet import is_complete

from app.demo import split
from indexing import Corpus, ImageIndex
from matvit import DEFAULT_ENCODER, MatViT, Submodel, count_macs, embed_each, resolve_device
from retrieval import Retriever
from retrieval.ground_truth import find_others
from retrieval.metrics import overlap
from retrieval.tuning.candidates import ask_merging, ask_widths
from retrieval.tuning.journal import Score
from retrieval.tuning.sample import Queries, draw_sample
from retrieval.tuning.trial import Trial, hits

BUDGETS = (0.12, 0.16, 0.2, 0.25, 0.3, 0.34, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1.0)
ALWAYS = ("S", "S~", "M~", "L~", "XL~")
K = 10


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images")
    parser.add_argument("--queries")
    parser.add_argument("--indexed", type=int, help="images drawn to be indexed [default: all]")
    parser.add_argument("--asked", type=int, default=4000)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--name", default="two_axes_digits")
    given = parser.parse_args()
    model = MatViT.load(given.encoder, device=resolve_device("auto"))
    with tempfile.TemporaryDirectory() as folder:
        if given.images is None or given.queries is None:
            images, queries = split(Corpus.open(write_digits(Path(folder) / "digits")))
        else:
            images, queries = Corpus.open(given.images), Corpus.open(given.queries)
        retriever = Retriever(model, open_or_build(model, _drawn(images, given.indexed), given))
        result = compare(retriever, queries, given.asked)
    command = "python benchmarks/two_axes.py " + without_paths(sys.argv[1:])
    write_result(given.name, {**provenance(command), "encoder": model.name, **result})


def open_or_build(model: MatViT, images: Corpus, given: argparse.Namespace) -> ImageIndex:
    """Open the index that an earlier run made, or make it."""
    path = given.work / f"{given.name}-{model.fingerprint}-{len(images)}.index"
    if is_complete(path):
        return ImageIndex.open(path, model)
    return ImageIndex.build(model, images, path, kind="Flat", progress=True)


def compare(retriever: Retriever, queries: Corpus, asked: int) -> dict[str, Any]:
    """Search with one axis and with both, and measure what each budget buys."""
    model = retriever.encoder
    sample = draw_sample(retriever, queries, size=asked)
    start = perf_counter()
    trial = Trial(retriever, sample.selecting, K)
    ask_widths(trial)
    one = trial.searched
    first = perf_counter()
    ask_merging(trial)
    both = trial.searched
    seconds = {"one axis": first - start, "the second": perf_counter() - first}
    full = count_macs(model.config, model.submodel())
    budgets = [
        (share, *(pick(model, each, share * full) for each in (one, both))) for share in BUDGETS
    ]
    picked = [each for _, *pair in budgets for each in pair if each is not None]
    found = judge(retriever, sample.bounding, [*picked, *map(model.submodel, ALWAYS)])
    return {
        "images": len(retriever.index),
        "selected_with": len(sample.selecting),
        "judged_with": len(sample.bounding),
        "seconds": {name: round(each, 1) for name, each in seconds.items()},
        "searched": {"one axis": len(one), "both": len(both)},
        "budgets": [
            {"budget": share, **_row(model, mine, both_, found)} for share, mine, both_ in budgets
        ],
        "sizes": [_figures(model, model.submodel(size), found) for size in ALWAYS],
    }


def pick(model: MatViT, searched: Mapping[Submodel, Score], macs: float) -> Submodel | None:
    """Return what found most of what a budget buys; None if it buys nothing."""
    fitting = [each for each in searched if count_macs(model.config, each) <= macs]
    return max(fitting, key=lambda each: searched[each].overlap or 0.0, default=None)


def judge(
    retriever: Retriever, queries: Queries, submodels: list[Submodel]
) -> dict[Submodel, tuple[np.ndarray, np.ndarray | None]]:
    """Say of each query what share of the full answer was found, and if its first hit is right."""
    model, own = retriever.encoder, queries.wanted.own
    rows = {
        submodel: find_others(retriever.index, vectors, own, K)[0]
        for submodel, vectors in embed_each(model, queries.pixels, [model.submodel(), *submodels])
    }
    reference = rows[model.submodel()]
    return {
        submodel: (overlap(each, reference, K), hits(retriever, each, queries))
        for submodel, each in rows.items()
    }


def _drawn(corpus: Corpus, count: int | None) -> Corpus:
    """Draw some images, the same ones every time."""
    if count is None or count >= len(corpus):
        return corpus
    return corpus.subset(np.sort(np.random.default_rng(0).permutation(len(corpus))[:count]))


def _row(
    model: MatViT,
    one: Submodel | None,
    both: Submodel | None,
    found: Mapping[Submodel, tuple[np.ndarray, np.ndarray | None]],
) -> dict[str, Any]:
    """Put what two searches bought with a budget beside each other."""
    row: dict[str, Any] = {
        "one axis": None if one is None else _figures(model, one, found),
        "both": None if both is None else _figures(model, both, found),
    }
    if one is not None and both is not None:
        gained = found[both][0] - found[one][0]
        row["gained"] = float(gained.mean())
        row["gained_error"] = float(gained.std() / math.sqrt(len(gained)))
    return row


def _figures(
    model: MatViT,
    submodel: Submodel,
    found: Mapping[Submodel, tuple[np.ndarray, np.ndarray | None]],
) -> dict[str, Any]:
    """Return what a submodel costs and finds."""
    shared, right = found[submodel]
    full = found[model.submodel()][1]
    figures: dict[str, Any] = {
        "submodel": str(submodel),
        "macs_fraction": count_macs(model.config, submodel)
        / count_macs(model.config, model.submodel()),
        "overlap@10": float(shared.mean()),
        "overlap_error": float(shared.std() / math.sqrt(len(shared))),
    }
    if right is not None and full is not None:
        figures["retained_hit_rate@1"] = float(np.nanmean(right) / np.nanmean(full))
    return figures


if __name__ == "__main__":
    main()
