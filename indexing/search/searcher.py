"""The one search of all kinds, with exact scores whatever an engine estimates."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from indexing.search.engine import Engine, Queries, Reach
from indexing.search.request import Effort
from indexing.search.scoring import RANKS, SPARE, ExactScores, Found, best_first, rounding
from indexing.store.embeddings import Vectors

_PAIRS = 1 << 16  # of queries and candidates, searched for at a time


AnyEngine = TypeVar("AnyEngine", bound=Engine, covariant=True)


class RescoringSearcher(Generic[AnyEngine]):
    """A FAISS index of any kind, or a vector store, over the rows of an embedding table.

    The engine proposes more candidates than asked for; each gets its exact cosine, computed in
    float32 from its own query and stored embedding alone, and the best are returned, equal scores
    by smaller id. A score is therefore the same for every kind and device; only which images are
    found may differ. An exact kind fetches until nothing that is left out could be among the best.
    If any other finds fewer than k images it is asked again with more effort, and at last the
    table without it, so that there are always k.

    Args:
        engine: What proposes candidates.
        embeddings: The rows it was made from.
        ids: Of the rows, in their order.
        effort: How hard to search; None for without leaving anything out.

    Attributes:
        ids: int64, shape (images,), as given.
        embeddings: As given.
        effort: How hard is searched.
        engine: As given.
    """

    def __init__(
        self,
        engine: AnyEngine,
        embeddings: Vectors,
        ids: Int64[ndarray, " images"],
        *,
        effort: Effort | None = None,
    ) -> None:
        self.ids = np.ascontiguousarray(ids, dtype=np.int64)
        self.embeddings = embeddings
        self.engine = engine
        self.effort = effort or self.engine.everything
        self._scores = ExactScores(self.engine.float_table, embeddings)
        self._cuts = not (engine.error or engine.is_exact)
        self._doubt = rounding(embeddings.shape[1]) + engine.error
        self._rows_are_ids = bool((self.ids == np.arange(len(self.ids))).all())
        self._labels_are_rows = self._rows_are_ids or self.engine.labels_are_rows
        if not self._labels_are_rows:
            self._order = np.argsort(self.ids, kind="stable")
            self._sorted = self.ids[self._order]

    def search(self, queries: Queries, k: int) -> Found:
        """Find the k nearest images of each query, best first, equal scores by smaller id.

        Args:
            queries: Unit vectors, as `unit_queries` returns them. A searcher on a GPU also takes a
                float32 tensor that is there.
            k: Within 1..number of images.
        """
        if not len(queries):
            return np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)
        if k > self.engine.max_fetch:
            return self._scores.nearest(_on_cpu(queries), k, self.ids)
        # The effort was measured with that many; fewer would find less than it promises.
        wanted = k if self.engine.is_exact else max(k, RANKS)
        fetch = max(wanted + SPARE, wanted * self.effort.rescore)
        reach = self._reach(fetch, self.effort.nprobe, self.effort.ef_search)
        ids, scores, settled = self._best(queries, k, reach)
        while not settled.all():
            pending, before = np.flatnonzero(~settled), reach
            reach = self._reach(*reach.wider())
            if reach == before:  # the engine has no more
                left = _on_cpu(queries[pending])
                ids[pending], scores[pending] = self._scores.nearest(left, k, self.ids)
                break
            found = self._best(queries[pending], k, reach)
            ids[pending], scores[pending], settled[pending] = found
        return ids, scores

    def candidates(
        self, queries: Queries, fetch: int, nprobe: int, ef_search: int
    ) -> tuple[Int64[ndarray, "queries fetch"], Float32[ndarray, "queries fetch"]]:
        """Rows that the engine proposes, in its order, with exact scores; -1 and -inf for none."""
        reach = self._reach(fetch, nprobe, ef_search)
        rows = np.full((len(queries), fetch), -1, dtype=np.int64)
        scores = np.full((len(queries), fetch), -np.inf, dtype=np.float32)
        size = max(1, _PAIRS // reach.fetch)
        for run in (slice(start, start + size) for start in range(0, len(queries), size)):
            _, labels = self.engine.propose(queries[run], reach)
            found = labels if self._labels_are_rows else self._rows_of(labels)
            rows[run, : reach.fetch] = found
            scores[run, : reach.fetch] = self._scores.of(_on_cpu(queries[run]), found)
        return rows, scores

    def nearest_among(self, queries: Queries, k: int, among: Int64[ndarray, " some"]) -> Found:
        """Find the k nearest of some images, given by id, comparing each of them: exact.

        Args:
            queries: Unit vectors.
            k: Within 1..number of these images.
            among: Ids of images that are there.
        """
        rows = among if self._rows_are_ids else np.flatnonzero(np.isin(self.ids, among))
        return self._scores.nearest(_on_cpu(queries), k, self.ids, rows)

    def nearest_rows(self, queries: Queries, k: int) -> Found:
        """Rows and exact scores of the k nearest, found without the engine; equal scores by row."""
        return self._scores.nearest(_on_cpu(queries), k, np.arange(len(self.ids)))

    def _best(
        self, queries: Queries, k: int, reach: Reach
    ) -> tuple[
        Int64[ndarray, "queries k"], Float32[ndarray, "queries k"], Bool[ndarray, " queries"]
    ]:
        """Best k candidates of each query, and whether they are settled: k, and if exact, the best.

        So many queries are asked together that their candidates fit into memory.
        """
        size = max(1, _PAIRS // reach.fetch)
        if len(queries) > size:
            runs = (queries[start : start + size] for start in range(0, len(queries), size))
            ids, scores, settled = zip(*(self._best(run, k, reach) for run in runs), strict=True)
            return np.concatenate(ids), np.concatenate(scores), np.concatenate(settled)
        estimates, labels = self.engine.propose(queries, reach)
        rows = labels if self._labels_are_rows else self._rows_of(labels)
        if self._cuts:
            # Those that cannot be among the best k, whatever the rounding: reading a vector here
            # and there costs more than comparing it. What engines return is sorted.
            possible = estimates >= estimates[:, k - 1 : k] - self._doubt
            rows = np.ascontiguousarray(rows[:, : possible.sum(axis=1).max()])
        exact = self._scores.of(_on_cpu(queries), rows)
        found = rows if self._rows_are_ids else np.where(rows < 0, -1, self.ids[rows])
        ids, scores = best_first(found, exact, k)
        settled = ids[:, -1] >= 0
        if self.engine.is_exact and reach.fetch < len(self.ids):
            settled &= scores[:, -1] - estimates[:, -1] > self._doubt
        return ids, scores, settled

    def _reach(self, fetch: int, nprobe: int, ef_search: int) -> Reach:
        """How far a search goes, within what there is and what the device can do."""
        images, most = len(self.ids), self.engine.max_fetch
        return Reach(
            min(fetch, images, most),
            min(nprobe, self.engine.lists, most),
            min(max(ef_search, fetch), images) if self.engine.is_graph else 0,
        )

    def _rows_of(self, labels: Int64[ndarray, "queries fetch"]) -> Int64[ndarray, "queries fetch"]:
        """Rows of what the engine names; -1 stays."""
        places = np.minimum(np.searchsorted(self._sorted, labels), len(self.ids) - 1)
        return np.where(labels < 0, -1, self._order[places])


def _on_cpu(queries: Queries) -> Float32[ndarray, "queries dim"]:
    return queries if isinstance(queries, ndarray) else queries.cpu().numpy()
