"""Making the FAISS index of a kind: trained on a bounded sample, filled block by block."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from tqdm import tqdm

from indexing.search import gpu
from indexing.search.kinds import ROWS_PER_LIST, Kind, empty_index, split
from indexing.store.embeddings import Embeddings

_ROWS_PER_ADD = 16_384
_SAMPLE = 65_536
_SAMPLE_BYTES = 1 << 31
_PQ_ROUNDS = 12
_OPQ_ROUNDS = 6
_OPQ_SAMPLE = 16_384


def make_structure(
    embeddings: Embeddings,
    ids: Int64[ndarray, " images"],
    kind: Kind,
    *,
    seed: int,
    on_gpu: bool,
    progress: bool,
) -> faiss.Index:
    """Train and fill a FAISS index, on the CPU in the end whatever made it.

    Memory is bounded by the structure itself, what its growing vectors take twice for a while
    (links of a graph, lists), a training sample of at most 2 GB with its copies, and one block of
    rows. A GPU is kept from others until it is done.

    Raises:
        gpu.DoesNotFitError: If it fails on the GPU.
    """
    with gpu.held() if on_gpu else nullcontext():
        index = empty_index(kind, embeddings.shape[1])
        if not index.is_trained:
            _train(index, _sample(embeddings, index, seed), seed, on_gpu)
        if not kind.is_ivf:
            reserve(faiss.downcast_index(getattr(index, "storage", index)), len(ids))
            index = faiss.IndexIDMap(index)
        filled = gpu.clone(index) if on_gpu and kind.is_ivf else index
        with tqdm(total=len(ids), desc="search index", unit="img", disable=not progress) as bar:
            for start in range(0, len(ids), _ROWS_PER_ADD):
                run = slice(start, start + _ROWS_PER_ADD)
                filled.add_with_ids(embeddings[run], np.ascontiguousarray(ids[run]))
                bar.update(len(ids[run]))
        return filled if filled is index else faiss.index_gpu_to_cpu(filled)


def reserve(codes: Any, rows: int) -> None:  # noqa: ANN401 -- the stubs of FAISS lack its members
    """Take the memory for so many rows of a FAISS index at once.

    Left alone it doubles whenever it is full, with the old and the new in memory together: up to
    three times what the rows take.

    Args:
        codes: An empty `IndexFlatCodes`, such as `IndexFlat` or `IndexScalarQuantizer`.
        rows: It will get.
    """
    codes.codes.resize(rows * codes.code_size)
    codes.codes.resize(0)  # keeps the memory


def _sample(embeddings: Embeddings, index: faiss.Index, seed: int) -> Float32[ndarray, "rows dim"]:
    """Rows to train on: evenly drawn without repetition, in the order they are stored."""
    _, inner = split(index)
    wanted = max(_SAMPLE, ROWS_PER_LIST * getattr(inner, "nlist", 1))
    most = min(wanted, _SAMPLE_BYTES // (4 * embeddings.shape[1]), len(embeddings))
    rows = np.random.default_rng(seed).choice(len(embeddings), most, replace=False)
    return np.asarray(embeddings[np.sort(rows)])


def _train(
    index: faiss.Index, sample: Float32[ndarray, "rows dim"], seed: int, on_gpu: bool
) -> None:
    """Train in place; every random choice follows from the seed."""
    outer, inner = split(index)
    if isinstance(outer, faiss.RandomRotationMatrix):
        outer.init(seed + 1)
    elif outer is not None:
        outer.niter, outer.niter_pq, outer.niter_pq_0 = _OPQ_ROUNDS, 2, _PQ_ROUNDS
        outer.max_train_points = _OPQ_SAMPLE
        _train_rotation(outer, sample, seed)
    if isinstance(inner, faiss.IndexIVF):
        _seed(inner.cp, seed)
        if isinstance(inner, faiss.IndexIVFPQ):
            _seed(inner.pq.cp, seed)
            inner.pq.cp.niter = _PQ_ROUNDS
            # Takes most of the time, for a search that is not used here.
            inner.do_polysemous_training = False  # type: ignore[attr-defined]
    rotated = sample if outer is None else outer.apply(sample)
    if on_gpu and isinstance(inner, faiss.IndexIVF):
        clustering: Any = gpu.clone(faiss.IndexFlatIP(inner.d))
        inner.clustering_index = clustering
        inner.train(rotated)
        inner.clustering_index = None  # type: ignore[assignment]
        clustering.this.own(True)  # or it stays on the GPU for good
    else:
        inner.train(rotated)
    index.is_trained = True


def _train_rotation(
    rotation: Any,  # noqa: ANN401 -- the stubs of FAISS lack its members
    sample: Float32[ndarray, "rows dim"],
    seed: int,
) -> None:
    codebook = faiss.ProductQuantizer(rotation.d_out, rotation.M, 8)
    _seed(codebook.cp, seed)
    rotation.pq = codebook
    rotation.train(sample)
    rotation.pq = None


def _seed(clustering: faiss.ClusteringParameters, seed: int) -> None:
    clustering.seed = seed + 1  # FAISS takes 0 and below for "as you like"
    clustering.min_points_per_centroid = 1  # no warnings: the minimum is checked before
