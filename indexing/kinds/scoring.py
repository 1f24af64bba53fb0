"""Exact scores of candidates, from the vectors that FAISS holds or those on disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from indexing.embeddings import Embeddings
from indexing.kinds.engine import Engine
from indexing.rescore import pair_scores

_BYTES_AT_ONCE = 1 << 21  # of vectors, which are still in the cache when they are compared


class ExactScores:
    """Cosines of queries and stored embeddings, each computed in float32 from its own pair alone.

    Args:
        engine: Its vectors are used if it keeps them whole, since they lie in memory.
        embeddings: Used if not.
    """

    def __init__(self, engine: Engine, embeddings: Embeddings) -> None:
        self._table = engine.float_table
        self._embeddings = embeddings
        self._pairs = max(1, _BYTES_AT_ONCE // (4 * embeddings.shape[1]))

    def of(
        self, queries: Float32[ndarray, "queries dim"], rows: Int64[ndarray, "queries fetch"]
    ) -> Float32[ndarray, "queries fetch"]:
        """Score the candidates of each query, given as rows of the table; -inf for row -1.

        Many are scored on as many threads as FAISS uses.
        """
        if self._table is not None:
            return pair_scores(queries, self._table, rows)
        size = max(1, self._pairs // rows.shape[1])
        if len(rows) <= size:
            return self._from_disk(queries, rows)
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]
        with ThreadPoolExecutor(min(len(parts), faiss.omp_get_max_threads())) as threads:
            scores = threads.map(lambda run: self._from_disk(queries[run], rows[run]), parts)
            return np.concatenate(list(scores))

    def _from_disk(
        self, queries: Float32[ndarray, "queries dim"], rows: Int64[ndarray, "queries fetch"]
    ) -> Float32[ndarray, "queries fetch"]:
        there = rows >= 0
        if there.all():
            vectors = self._embeddings[rows.reshape(-1)]
            places = np.arange(rows.size).reshape(rows.shape)
        else:
            vectors = self._embeddings[rows[there]]
            places = np.full(rows.shape, -1, dtype=np.int64)
            places[there] = np.arange(len(vectors))
        return pair_scores(queries, faiss.swig_ptr(vectors), places)
