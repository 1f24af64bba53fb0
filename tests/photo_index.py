"""An opened index of a few photos: what the tests of the page start from."""

from __future__ import annotations

from pathlib import Path

from app.page.opened import Opened, open_all
from app.page.pictures import Query
from indexing import Corpus, ImageIndex
from matvit.cost import count_macs
from matvit.model import MatViT
from retrieval import OperatingPoint, ParetoFrontier
from retrieval.tuning.record import Escalation, Operation, TunedFor, Tuning


def open_photos(model: MatViT, photos: Path, path: Path) -> Opened:
    """Index a folder of photos and open it with the encoder that did."""
    return open_all(ImageIndex.build(model, Corpus.open(photos), path), model)


def upload(path: Path) -> Query:
    """Ask with a file."""
    return Query(data=path.read_bytes(), name=path.name)


def tune(opened: Opened, *, auto: bool = True) -> Tuning:
    """Store a tuning with an index: numbers made up, shape real."""
    config = opened.retriever.encoder.config
    full = count_macs(config, opened.retriever.encoder.submodel(None))
    points = []
    for name, overlap in (("S", 0.7), ("1xS,1xL", 0.9), ("XL", 1.0)):
        macs = count_macs(config, opened.retriever.encoder.submodel(name))
        points.append(
            OperatingPoint(
                submodel=name, macs=macs, macs_fraction=macs / full, params=1, queries=9, k=10,
                overlap_at_k=overlap,
            )
        )  # fmt: skip
    reported = Operation(level=0.5, thresholds=(0.9,), macs_fraction=0.6, lost=0.02)
    tuning = Tuning(
        encoder=opened.retriever.encoder, folder=opened.index.path,
        tuned_for=TunedFor.of(opened.index, opened.retriever.encoder),
        frontier=ParetoFrontier(points), selection=ParetoFrontier(points),
        target=0.8, strategy="distortion", measured=3, selecting=9, altered=True,
        escalation=Escalation(
            ladder=("S", "XL"), thresholds=(1e9,), uses_labels=False, max_loss=0.05,
            certainty=0.9, calibrated_on=9, reported=reported,
        ) if auto else None,
    )  # fmt: skip
    tuning.store()
    return tuning
