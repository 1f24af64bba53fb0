"""Questions that come one by one are answered together: whoever waits a moment shares a batch."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from app.serving.meters import Meters
from app.serving.pace import Pace
from matvit import Submodel, count_macs, embed
from retrieval import Hits, Retriever, Wish

GIVEN = "vector"
"""What is called the submodel of a question that came as a vector."""


class BusyError(Exception):
    """So many are waiting that another would wait too long."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked.

    Attributes:
        pixels: An image as the encoder sees it; None if there is a vector.
        vector: Of length one, embedded elsewhere; None if there are pixels.
        k: Hits wanted; 0 for the vector alone.
        submodel: What embeds it; None to follow the load.
        at_least: Multiply-accumulates that are the least to embed it with, following the load.
        wish: What may answer.
    """

    pixels: NDArray[np.uint8] | None
    vector: NDArray[np.float32] | None = None
    k: int
    submodel: Submodel | None = None
    at_least: int = 0
    wish: Wish = Wish()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is answered.

    Attributes:
        hits: What was found; empty if no hits were wanted.
        vector: Embedding of the image, of length one.
        generation: Of the index.
    """

    hits: Hits
    vector: NDArray[np.float32]
    generation: int


@dataclass
class _Waiting:
    question: Question
    answer: asyncio.Future[Answer]
    since: float = field(default_factory=perf_counter)


class Batches:
    """Answers questions in batches, in one thread, so that their milliseconds are their own.

    Args:
        retriever: Who answers at first.
        sizes: Submodels that following the load chooses from, cheapest first.
        pace: Which of them; None for always the last.
        meters: What is counted.
        most_waiting: Questions that may wait.
        wait_ms: How long the first question of a batch waits for others.
        most: Questions of a batch.
    """

    def __init__(
        self,
        retriever: Retriever,
        sizes: Sequence[Submodel],
        pace: Pace | None,
        meters: Meters,
        *,
        most_waiting: int = 64,
        wait_ms: float = 2.0,
        most: int = 16,
    ) -> None:
        self.sizes = sizes
        self.use(retriever)
        self._pace, self._meters = pace, meters
        self._wait_s, self._most = wait_ms / 1000, most
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(most_waiting)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answering")
        self._macs = [count_macs(retriever.encoder.config, size) for size in sizes]

    def use(self, retriever: Retriever) -> None:
        """Let another index answer from the next batch on."""
        self._served = (retriever, int(retriever.index.info()["generation"]))

    @property
    def retriever(self) -> Retriever:
        """Who answers."""
        return self._served[0]

    @property
    def generation(self) -> int:
        """Of the index that answers."""
        return self._served[1]

    async def ask(self, question: Question) -> Answer:
        """Wait for an answer.

        Raises:
            BusyError: If too many are waiting.
        """
        waiting = _Waiting(question, asyncio.get_running_loop().create_future())
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull:
            raise BusyError from None
        if self._pace is not None:
            self._pace.arrived()
        answer = await waiting.answer
        total = 1000 * (perf_counter() - waiting.since)
        if self._pace is not None and question.submodel is None:
            self._pace.answered(total)
        return answer

    async def run(self) -> None:
        """Answer until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = await self._collect()
                for submodel, place, group in self._grouped(batch):
                    work = loop.run_in_executor(self._thread, self._answer, submodel, place, group)
                    try:
                        answers = await work
                    except Exception as error:  # noqa: BLE001 -- each who asked is told
                        _tell(group, error)
                        continue
                    for waiting, answer in zip(group, answers, strict=True):
                        if not waiting.answer.done():  # who gave up is not told
                            waiting.answer.set_result(answer)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _collect(self) -> list[_Waiting]:
        """Wait for a question, and then a moment for others."""
        batch = [await self._queue.get()]
        until = batch[0].since + self._wait_s
        while len(batch) < self._most:
            if not self._queue.empty():
                batch.append(self._queue.get_nowait())
            elif (left := until - perf_counter()) > 0:
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), left))
                except TimeoutError:
                    break
            else:
                break
        return [waiting for waiting in batch if not waiting.answer.done()]

    def _grouped(
        self, batch: list[_Waiting]
    ) -> list[tuple[Submodel | None, int | None, list[_Waiting]]]:
        """Put together what one submodel answers to one wish; None is for a vector."""
        groups: dict[tuple[Submodel | None, int | None, Wish], list[_Waiting]] = defaultdict(list)
        place = len(self.sizes) - 1
        if self._pace is not None and batch:
            place = self._pace.choose(1000 * (perf_counter() - batch[0].since))
        self._meters.size_in_use.set(self._macs[place] / self._macs[-1])
        for waiting in batch:
            question = waiting.question
            self._meters.queue.observe(perf_counter() - waiting.since)
            if question.vector is not None:
                groups[None, None, question.wish].append(waiting)
            elif question.submodel is not None:
                groups[question.submodel, None, question.wish].append(waiting)
            else:
                floor = next(
                    (at for at, macs in enumerate(self._macs) if macs >= question.at_least),
                    len(self.sizes) - 1,
                )
                chosen = max(place, floor)
                groups[self.sizes[chosen], chosen, question.wish].append(waiting)
        return [(submodel, at, group) for (submodel, at, _), group in groups.items()]

    def _answer(
        self, submodel: Submodel | None, place: int | None, group: list[_Waiting]
    ) -> list[Answer]:
        """Embed and search a group, in the thread."""
        (retriever, generation), start = self._served, perf_counter()
        name, macs = (GIVEN, 0) if submodel is None else (str(submodel), 0)
        if submodel is None:
            given = [waiting.question.vector for waiting in group]
            vectors = np.stack([vector for vector in given if vector is not None])
        else:
            seen = [waiting.question.pixels for waiting in group]
            pixels = np.stack([image for image in seen if image is not None])
            vectors = embed(retriever.encoder, pixels, submodel)
            macs = count_macs(retriever.encoder.config, submodel)
            self._meters.encode.labels(name).observe((perf_counter() - start) / len(group))
        embedded = perf_counter()
        k = min(max(waiting.question.k for waiting in group), len(retriever.index))
        found = retriever.nearest(vectors, k, group[0].question.wish) if k else None
        searched = perf_counter()
        if k:
            self._meters.search.observe((searched - embedded) / len(group))
        if place is not None and self._pace is not None:
            self._pace.worked(place, 1000 * (searched - start) / len(group))
        answers = []
        for row, waiting in enumerate(group):
            hits = Hits(
                query=None,
                submodel=name,
                macs=macs,
                encode_ms=1000 * (embedded - start) / len(group) if macs else 0.0,
                search_ms=1000 * (searched - embedded) / len(group),
                hits=found[row][: waiting.question.k] if found else (),
            )
            answers.append(Answer(hits=hits, vector=vectors[row], generation=generation))
        return answers


def _tell(group: list[_Waiting], error: Exception) -> None:
    for waiting in group:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
