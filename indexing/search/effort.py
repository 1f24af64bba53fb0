"""How hard to search: measured on held-out rows when the index is built, and stored with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int64
from msgspec.structs import replace
from numpy import ndarray

from indexing.search.request import TARGET, Effort
from indexing.search.scoring import RANKS, SPARE

if TYPE_CHECKING:
    from indexing.search.engine import Engine
    from indexing.search.searcher import RescoringSearcher

_QUERIES = 512
_RESCORES = (1, 2, 4, 8, 16, 32)
_MOST_PLACES = 2_048  # of a walk through a graph
_DEVIATIONS = 2.0
_RANDOM_READ = 4  # reading scattered rows costs about this many times reading them in order


def measure_effort(
    searcher: RescoringSearcher[Engine], *, target: float = TARGET, seed: int = 0
) -> Effort:
    """Find the cheapest effort that reaches a target on a sample of the stored rows.

    A sampled row asks for its ten nearest, itself left out. An image counts as found if its score
    is as high as that of the tenth exact one, so that duplicates and ties are no mistakes. The
    mean has to clear the target by two standard errors, so that other queries reach it too. Cost
    is counted in bytes read, not timed: the choice depends on the data and the seed alone.

    Args:
        searcher: Of any kind.
        target: Wanted ann_recall@10, within 0..1.
        seed: Of the sample.

    Returns:
        The effort; if nothing reaches the target, the one with the highest recall.

    Raises:
        ValueError: If the target is not a share of one.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target must be above 0 and at most 1, got {target}")
    chosen = replace(searcher.engine.everything, target=float(target))
    images = len(searcher.ids)
    ranks = min(RANKS, images - 1)
    if searcher.engine.is_exact or ranks < 1:
        return chosen
    rows = np.random.default_rng(seed).choice(images, min(_QUERIES, images), replace=False)
    sample = _Sample(searcher, np.sort(rows), ranks)
    best: tuple[bool, float, float] | None = None
    for nprobe, ef_search in _efforts(searcher):
        if best and best[0] and -best[1] < _cost(searcher, nprobe, ef_search, 0):
            break  # dearer than what is good enough, before a single candidate is rescored
        for rescore, found in sample.recalls(nprobe, ef_search):
            recall, error = float(found.mean()), float(found.std() / math.sqrt(len(found)))
            met = recall - _DEVIATIONS * error >= target
            cost = _cost(searcher, nprobe, ef_search, max(ranks + SPARE, ranks * rescore))
            rank = (met, -cost if met else recall, -cost)
            if best is None or rank > best:
                best = rank
                chosen = Effort(
                    nprobe=nprobe, ef_search=ef_search, rescore=rescore,
                    target=float(target), recall=recall, queries=len(found),
                )  # fmt: skip
    return chosen


class _Sample:
    """Held-out rows, and the exact scores that a search for them has to find."""

    def __init__(
        self, searcher: RescoringSearcher[Engine], rows: Int64[ndarray, " queries"], ranks: int
    ) -> None:
        self._searcher, self._rows, self._ranks = searcher, rows, ranks
        self._queries = searcher.embeddings[rows]
        found, scores = searcher.nearest_rows(self._queries, ranks + 1)
        self._least = self._best(found, scores)[:, -1:]

    def recalls(
        self, nprobe: int, ef_search: int
    ) -> Iterator[tuple[int, Float32[ndarray, " queries"]]]:
        """Recall of each query at one effort, for each depth of rescoring."""
        depths = _RESCORES if self._searcher.engine.error else _RESCORES[:1]
        fetches = [
            min(max(self._ranks + SPARE, self._ranks * depth) + 1, len(self._searcher.ids))
            for depth in depths
        ]
        rows, scores = self._searcher.candidates(self._queries, fetches[-1], nprobe, ef_search)
        for depth, fetch in zip(depths, fetches, strict=True):
            best = self._best(rows[:, :fetch], scores[:, :fetch])
            yield depth, (best >= self._least).mean(axis=1, dtype=np.float32)

    def _best(
        self, rows: Int64[ndarray, "queries fetch"], scores: Float32[ndarray, "queries fetch"]
    ) -> Float32[ndarray, "queries ranks"]:
        """Best scores among the candidates that are not the query itself."""
        others = np.where(rows == self._rows[:, np.newaxis], -np.inf, scores)
        return -np.sort(-others, axis=1)[:, : self._ranks]


def _efforts(searcher: RescoringSearcher[Engine]) -> Iterator[tuple[int, int]]:
    """Values of nprobe and ef_search, from the least effort to the most."""
    engine = searcher.engine
    most = engine.lists or (min(_MOST_PLACES, len(searcher.ids)) if engine.is_graph else 0)
    if not most:
        yield 0, 0
        return
    steps = sorted({1 << power for power in range(17)} | {3 << power for power in range(16)})
    for step in (*(step for step in steps if step < most), most):
        if engine.lists:
            yield step, 0
        elif step >= min(RANKS, most):
            yield 0, step


def _cost(searcher: RescoringSearcher[Engine], nprobe: int, ef_search: int, rescored: int) -> float:
    """Bytes read for a query, scattered reads counted for what they cost."""
    images, dim = searcher.embeddings.shape
    engine = searcher.engine
    scanned = nprobe / engine.lists if engine.lists else float(not engine.is_graph)
    read = scanned * images * engine.code_size + _RANDOM_READ * ef_search * 4 * dim
    return read + _RANDOM_READ * rescored * 2 * dim
