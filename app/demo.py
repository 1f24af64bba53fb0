"""The whole story in one go: index images at full size, ask with every size, report."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.console import say
from app.digits import write_digits
from indexing import Corpus, ImageIndex
from matvit.mix_n_match import mix_n_match, trained_sizes
from matvit.model import MatViT
from retrieval import ParetoFrontier, Retriever, evaluate
from retrieval.report import write_report

MARKER = ".matvit-demo"
_QUERY_EVERY = 5
_MAX_QUERIES = 500
_MIXES = 8


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        index: Folder of the index.
        report: Folder with plot, CSV and JSON.
        frontier: What was measured.
        failures: Images that could not be read.
    """

    index: Path
    report: Path
    frontier: ParetoFrontier
    failures: int


def run_demo(model: MatViT, out: Path, images: Path | None, *, progress: bool) -> Demo:
    """Index images, ask with every encoder size, write the report.

    Args:
        model: The encoder.
        out: Folder for everything that is made; an earlier demo in it is replaced.
        images: Photos to use, without labels; None for scikit-learn's handwritten digits.
        progress: Show progress bars.

    Raises:
        FileExistsError: If `out` holds anything but an earlier demo.
        ValueError: If there are fewer than ten images.
    """
    if images is not None and images.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out} lies in {images}, so the report would be indexed; choose --out")
    _claim(out)
    corpus = Corpus.open(write_digits(out / "digits") if images is None else images)
    corpus = corpus if images is None else corpus.without_labels()
    if len(corpus) < 10:
        raise ValueError(f"the demo needs at least 10 images, {images} has {len(corpus)}")
    database, queries = split(corpus)
    say(f"Indexing {len(database):,} images once, with the full encoder.")
    if (out / "demo.index").exists():
        shutil.rmtree(out / "demo.index")
    index = ImageIndex.build(model, database, out / "demo.index", progress=progress)
    sizes = [*trained_sizes(model.config), *mix_n_match(model.config, _MIXES)]
    say(f"Asking {len(queries):,} queries with encoders of {len(set(sizes))} sizes.")
    frontier = evaluate(Retriever(model, index), queries, sizes, progress=progress)
    write_report(frontier, out / "report")
    unreadable = frontier.conditions.unreadable if frontier.conditions else 0
    return Demo(out / "demo.index", out / "report", frontier, len(index.failures) + unreadable)


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
