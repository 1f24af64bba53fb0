"""Candidates that FAISS proposes: an index of its on the CPU, or a copy on the GPU."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import faiss
import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from indexing.search import gpu
from indexing.search.engine import Queries, Reach
from indexing.search.faiss_file import write_faiss
from indexing.search.kinds import split
from indexing.search.request import TARGET, Effort

_FLOAT16_ERROR = 2.0**-11 + 2.0**-20  # of a score: half a unit in the last place, and subnormals
_GPU_ERROR = 2.0**-9  # queries are rounded too, and sums are taken in another order

if hasattr(os, "register_at_fork"):
    # A forked process has none of the threads that OpenMP believes to have: it would wait for ever.
    os.register_at_fork(after_in_child=lambda: faiss.omp_set_num_threads(1))


class FaissEngine:
    """Proposes what FAISS finds; see `Engine`.

    Args:
        index: As `make_structure` makes it.
        on_gpu: Copy it to the GPU and search there.
    """

    def __init__(self, index: faiss.Index, *, on_gpu: bool = False) -> None:
        self._owner = index  # of the memory behind the parts
        self._rotation, inner = split(index)
        self._inner = inner
        self.lists = int(getattr(inner, "nlist", 0))
        self.is_graph = isinstance(inner, faiss.IndexHNSW)
        self.labels_are_rows = isinstance(index, faiss.IndexIDMap)
        storage = faiss.downcast_index(inner.storage) if self.is_graph else inner
        flat = isinstance(storage, faiss.IndexFlat)
        half = _is_float16(storage)
        self.is_exact = (flat or half) and not self.is_graph
        self.error = 0.0
        if on_gpu:
            self.error = _GPU_ERROR
        elif not (flat or isinstance(inner, faiss.IndexIVFFlat)):
            self.error = _FLOAT16_ERROR
        self.code_size = int(inner.code_size if self.lists else storage.sa_code_size())
        self.float_table = storage.get_xb() if flat else None  # type: ignore[union-attr]
        self.everything = Effort(
            nprobe=self.lists,
            ef_search=int(inner.ntotal) if self.is_graph else 0,
            rescore=1,
            target=TARGET,
            recall=1.0,
            queries=0,
        )
        self.max_fetch = gpu.MAX_FETCH if on_gpu else np.iinfo(np.int32).max
        self._on_gpu = gpu.clone(inner) if on_gpu else None
        self._parameters: dict[tuple[int, int], Any] = {}

    def __del__(self) -> None:
        if getattr(self, "_on_gpu", None) is not None:
            with gpu.LOCK:  # its memory goes back to the resources that others search with
                self._on_gpu = None

    def propose(
        self, queries: Queries, reach: Reach
    ) -> tuple[Float32[ndarray, "queries fetch"], Int64[ndarray, "queries fetch"]]:
        """Return estimated scores and labels, best first; -1 where there is no candidate."""
        if self._on_gpu is not None:
            return self._propose_on_gpu(queries, reach)
        assert isinstance(queries, ndarray)
        asked = queries if self._rotation is None else self._rotation.apply(queries)
        scores = np.empty((len(asked), reach.fetch), dtype=np.float32)
        labels = np.empty((len(asked), reach.fetch), dtype=np.int64)
        asked_at, scores_at, labels_at = map(faiss.swig_ptr, (asked, scores, labels))
        parameters = self._parameters_of(reach)
        # Not `search`: faiss.contrib.torch_utils, once imported, takes its parameters away.
        self._inner.search_c(len(asked), asked_at, reach.fetch, scores_at, labels_at, parameters)
        return scores, labels

    def write(self, stream: BinaryIO) -> None:
        """Write the CPU's copy to a stream, which unlike FAISS's own files notices a full disk."""
        write_faiss(self._owner, stream)

    def _propose_on_gpu(
        self, queries: Queries, reach: Reach
    ) -> tuple[Float32[ndarray, "queries fetch"], Int64[ndarray, "queries fetch"]]:
        assert self._on_gpu is not None
        if self._rotation is not None:
            queries = self._rotate(queries)
        with gpu.LOCK:
            if self.lists:
                self._on_gpu.nprobe = reach.nprobe  # type: ignore[attr-defined]
            return gpu.search(self._on_gpu, queries, reach.fetch)

    def _parameters_of(self, reach: Reach) -> Any:  # noqa: ANN401
        """Search parameters of one call: nothing is set in the index, so threads do not meet."""
        key = reach.nprobe, reach.ef_search
        if key not in self._parameters:
            made: Any = None
            if self.lists:
                made = faiss.SearchParametersIVF(nprobe=key[0])  # type: ignore[call-arg]
            elif self.is_graph:
                made = faiss.SearchParametersHNSW(efSearch=key[1])  # type: ignore[attr-defined]
            self._parameters[key] = made  # making it takes longer than some searches
        return self._parameters[key]

    def _rotate(self, queries: Queries) -> Queries:
        """Apply the rotation where the queries are."""
        assert self._rotation is not None
        if isinstance(queries, ndarray):
            return np.asarray(self._rotation.apply(queries))
        matrix = faiss.vector_to_array(self._rotation.A).reshape(-1, queries.shape[1])
        return queries @ queries.new_tensor(matrix).T


def _is_float16(index: faiss.Index) -> bool:
    return (
        isinstance(index, faiss.IndexScalarQuantizer)
        and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16
    )
