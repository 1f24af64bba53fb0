"""What is served: an index that is open, follows its changes, and answers in batches."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec
import numpy as np
from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool

from app.options import load_encoder_for
from app.output import one_line
from app.serving.batches import Batches
from app.serving.meters import Meters
from app.serving.pace import Pace
from indexing import ImageIndex, read_manifest
from matvit import Encoder, Submodel, count_macs, embed, trained_sizes
from retrieval import Retriever, Tuning, read_tuning

AGAIN_S = 1
"""Seconds after which somebody who was turned away may come again."""

_LOOK_S = 2.0  # between two looks whether the index has changed

_log = logging.getLogger("matvit.serve")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve, and within what bounds.

    Attributes:
        index: Folder of the index.
        encoder: Name or folder of the encoder; None for the index's own.
        submodel: What answers; with `slo_ms` the largest that may.
        slo_ms: Milliseconds within which 95 of 100 answers are wanted; None to follow no load.
        most_bytes: Of an upload.
        most_waiting: Questions that may wait.
        limit_s: Seconds that a question may wait for its answer.
        page: Folder of files to serve beside it; None for none.
    """

    index: str
    encoder: str | None = None
    submodel: str | None = None
    slo_ms: float | None = None
    most_bytes: int = 20_000_000
    most_waiting: int = 64
    limit_s: float = 10.0
    page: str | None = None


class Server:
    """What the routes share; it is open from the start of the application to its end."""

    def __init__(self, settings: Settings, retriever: Retriever | None = None) -> None:
        self.settings, self.meters = settings, Meters()
        self.batches: Batches | None = None
        self._retriever = retriever
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the index, if it is not open yet, and begin to answer."""
        retriever = self._retriever
        if retriever is None:
            retriever = await run_in_threadpool(open_served, self.settings)
        sizes, pace = _ladder(retriever, self.settings)
        self.batches = Batches(
            retriever, sizes, pace, self.meters, most_waiting=self.settings.most_waiting
        )
        self._tell(retriever)
        self._tasks = [
            asyncio.create_task(self.batches.run()),
            asyncio.create_task(self._follow()),
        ]

    async def stop(self) -> None:
        """Stop answering."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def answering(self) -> Batches:
        """Who answers.

        Raises:
            HTTPException: If nobody does yet.
        """
        if self.batches is None:
            raise HTTPException(503, "not ready yet", {"Retry-After": str(AGAIN_S)})
        return self.batches

    async def _follow(self) -> None:
        """Open the index again whenever it has changed; while that fails the old one answers."""
        while True:
            await asyncio.sleep(_LOOK_S)
            batches = self.answering()
            try:
                path = Path(self.settings.index)
                manifest = await run_in_threadpool(read_manifest, path)
                if manifest.plan is None and manifest.generation != batches.generation:
                    encoder = batches.retriever.encoder
                    retriever = await run_in_threadpool(open_served, self.settings, encoder)
                    batches.use(retriever)
                    self._tell(retriever)
            except (OSError, ValueError) as error:
                _log.warning("the index is not opened again: %s", one_line(error))

    def _tell(self, retriever: Retriever) -> None:
        info = retriever.index.info()
        self.meters.generation.set(info["generation"])
        self.meters.images.set(len(retriever.index))


def open_served(settings: Settings, encoder: Encoder | None = None) -> Retriever:
    """Open what is served; a stored image has found itself in it.

    Args:
        settings: What to serve.
        encoder: Loaded already; None loads it.

    Raises:
        ValueError: If it cannot be served.
    """
    index = ImageIndex.open(settings.index, device="cpu")
    used = encoder or load_encoder_for(index, settings.encoder)
    retriever = Retriever(used, index)
    side = used.preprocess.img_size
    embed(used, np.zeros((1, side, side, 3), dtype=np.uint8), used.submodel(settings.submodel))
    _check_finds_itself(index)
    return retriever


def _ladder(retriever: Retriever, settings: Settings) -> tuple[list[Submodel], Pace | None]:
    """Return the sizes that may answer, cheapest first, and what chooses among them."""
    encoder = retriever.encoder
    largest = encoder.submodel(settings.submodel)
    if settings.slo_ms is None:
        return [largest], None
    config = encoder.config
    tuning: Tuning | None = read_tuning(retriever.index, encoder) if encoder.is_whole else None
    if tuning is not None:
        sizes = [encoder.submodel(point.submodel) for point in tuning.by_overlap.pareto]
    else:
        sizes = list(trained_sizes(config))
    most = count_macs(config, largest)
    cheaper = [size for size in sizes if count_macs(config, size) < most]
    ladder = sorted([*cheaper, largest], key=lambda size: count_macs(config, size))
    return ladder, Pace([count_macs(config, size) for size in ladder], settings.slo_ms)


def _check_finds_itself(index: ImageIndex) -> None:
    """Ask with a stored image.

    Raises:
        ValueError: If it does not find an image that is as near as itself.
    """
    _, scores = index.search(index.embeddings[:1], 1)
    if not scores[0, 0] > 1 - 1e-2:
        raise ValueError(f"{index.path} does not find its own images; run `matvit index verify`")
