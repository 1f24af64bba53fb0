"""The whole story in one go: index images at full size, ask with every size, report.

Without images of your own it is told with places in real photographs that come inside a dependency.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.output import one_line, say
from app.places import PHOTOGRAPHS, VIEWS, write_places
from indexing import Corpus, ImageIndex
from matvit import Encoder, mix_n_match, trained_sizes
from retrieval import (
    ParetoFrontier,
    Retriever,
    TooFewQueriesError,
    evaluate,
    spread,
    tune,
    write_report,
)

MARKER = ".matvit-demo"
INDEX = "demo.index"
"""Name of the demo's index in its folder."""

_QUERY_EVERY = 5
_MAX_QUERIES = 500
_MIXES = 8
_TUNED_WITH = 800
_TARGET = 0.99  # of what the full encoder finds


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        index: Folder of the index.
        report: Folder with plot, CSV and JSON.
        frontier: What was measured.
        recommended: Submodel to ask with; None if there were too few images to find out.
        failures: Images that could not be read.
    """

    index: Path
    report: Path
    frontier: ParetoFrontier
    recommended: str | None
    failures: int

    @property
    def summary(self) -> str | None:
        """What the recommended submodel saves and costs on the demo's queries, in one line."""
        if self.recommended is None:
            return None
        return f"recommended: {self.frontier.describe(self.frontier.point_of(self.recommended))}"


def run_demo(model: Encoder, out: Path, images: Path | None, *, progress: bool) -> Demo:
    """Index images, find the encoder size to ask with, compare all sizes, write the report.

    Args:
        model: The encoder.
        out: Folder for everything that is made; an earlier demo in it is replaced.
        images: Photos to use, without labels; None for those of `app.places`.
        progress: Show progress bars.

    Raises:
        FileExistsError: If `out` holds anything but an earlier demo.
        FileNotFoundError: If there are no `images`, and no scikit-image with its own.
        ValueError: If there are fewer than ten images.
    """
    if images is not None and images.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out} lies in {images}, so the report would be indexed; choose --out")
    _claim(out)
    if images is None:
        say(f"Seeing places in {len(PHOTOGRAPHS)} photographs as {VIEWS} views each.")
        corpus = Corpus.open(write_places(out / "places", progress=progress))
    else:
        corpus = Corpus.open(images).without_labels()
    if len(corpus) < 10:
        raise ValueError(f"the demo needs at least 10 images, {images} has {len(corpus)}")
    database, queries = split(corpus)
    say(f"Indexing {len(database):,} images once, with the full encoder.")
    if (out / INDEX).exists():
        shutil.rmtree(out / INDEX)
    index = ImageIndex.build(model, database, out / INDEX, progress=progress)
    retriever = Retriever(model, index)
    mixes, recommended = mix_n_match(model.config, _MIXES), None
    say("Finding out which encoder sizes keep most of it, with altered images of the index.")
    try:
        tuning = tune(
            retriever,
            size=_TUNED_WITH,
            target=None if corpus.labels is None else _TARGET,
            progress=progress,
        )
    except TooFewQueriesError as error:
        say(f"No size is recommended: {one_line(error)}")
    else:
        recommended = tuning.recommended.submodel
        best = [model.submodel(point.submodel) for point in tuning.frontier.pareto]
        mixes = [model.submodel(recommended), *spread(model.config, best, _MIXES)]
    sizes = [*trained_sizes(model.config), *mixes]
    say(f"Asking {len(queries):,} queries with encoders of {len(set(sizes))} sizes.")
    frontier = evaluate(retriever, queries, sizes, progress=progress)
    write_report(frontier, out / "report", recommended=recommended)
    unreadable = frontier.conditions.unreadable if frontier.conditions else 0
    failures = len(index.failures) + unreadable
    return Demo(out / INDEX, out / "report", frontier, recommended, failures)


def split(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Divide a corpus into database and queries: every fifth image asks, 500 at most."""
    rows = np.arange(len(corpus))
    asking = rows[:: max(_QUERY_EVERY, -(-len(corpus) // _MAX_QUERIES))]
    return corpus.subset(np.setdiff1d(rows, asking)), corpus.subset(asking)


def _claim(out: Path) -> None:
    """Make the folder, or make sure that it is the demo's own."""
    if out.exists() and not (out / MARKER).exists() and (out.is_file() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds something else; choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
