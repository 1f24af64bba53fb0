"""A search structure made, stored, and read back: of every kind, on the CPU or on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from indexing.search import gpu
from indexing.search.effort import measure_effort
from indexing.search.faiss_engine import FaissEngine
from indexing.search.faiss_file import held_ids, read_structure
from indexing.search.kinds import (
    FACTORY,
    KINDS,
    ROWS_PER_LIST,
    Kind,
    accepts_factory,
    empty_index,
    resolve_again,
    runs_on_gpu,
    split,
)
from indexing.search.request import EXACT, TARGET, KindRequest
from indexing.search.searcher import RescoringSearcher
from indexing.store.embeddings import Embeddings
from indexing.store.files import damaged, store
from indexing.store.manifest import MANIFEST, SearchRecord
from matvit import progress_of

_Made = TypeVar("_Made")

_ROWS_PER_ADD = 16_384
_SAMPLE = 65_536
_SAMPLE_BYTES = 1 << 31
_PQ_ROUNDS = 12
_OPQ_ROUNDS = 6
_OPQ_SAMPLE = 16_384


def make_searcher(
    embeddings: Embeddings,
    ids: Int64[ndarray, " images"],
    kind: Kind,
    *,
    seed: int = 0,
    device: str = "cpu",
    target: float = TARGET,
    progress: bool = False,
) -> RescoringSearcher[FaissEngine]:
    """Train and fill a search structure, and measure how hard it must search.

    The same seed gives the same answers on one machine; an HNSW graph only if FAISS runs on one
    thread, since its threads race for neighbours.

    Args:
        embeddings: Unit vectors.
        ids: Of the rows; each once, none negative.
        kind: As `choose_kind`, `named_kind` or `factory_kind` return it for so many rows.
        seed: Of the training sample, k-means, rotations and the measurement.
        device: `"auto"`, `"cpu"` or `"cuda"`: where to train, fill and search.
        target: Wanted ann_recall@10.
        progress: Show a progress bar on stderr.

    Raises:
        ValueError: If there are too few images for the kind, ids are not one per row, or the
            device cannot be had.
    """
    ids = np.asarray(ids)
    if len(ids) != len(embeddings) or len(np.unique(ids)) != len(ids) or (ids < 0).any():
        raise ValueError(
            f"{len(embeddings):,} rows need as many different ids, none negative; "
            f"got {len(np.unique(ids)):,}"
        )
    if len(ids) < kind.min_images:
        raise ValueError(
            f"kind {kind.name} ({kind.factory}) needs at least {kind.min_images:,} images, "
            f"there are {len(ids):,}; use Flat"
        )

    def make(on_gpu: bool) -> RescoringSearcher[FaissEngine]:
        structure = make_structure(
            embeddings, ids, kind, seed=seed, on_gpu=on_gpu, progress=progress
        )
        return RescoringSearcher(FaissEngine(structure, on_gpu=on_gpu), embeddings, ids)

    on_gpu = _is_on_gpu(device, kind, embeddings.shape[1])
    searcher = _or_on_cpu(make, device, on_gpu=on_gpu)
    searcher.effort = measure_effort(searcher, target=target, seed=seed)
    return searcher


def store_searcher(
    path: Path,
    generation: int,
    request: KindRequest,
    embeddings: Embeddings,
    ids: Int64[ndarray, " images"],
    *,
    device: str = "cpu",
    progress: bool = False,
) -> SearchRecord:
    """Make and store the search structure of a generation, of the kind that was asked for.

    If there are too few or too many images for it now, the record's `note` says so, and what was
    done instead. What will be searched on a GPU is also made on one, if there is one here.
    """
    kind, note = resolve_again(request, len(ids), embeddings.shape[1])
    if kind.is_exact:
        device = "cpu"  # there is nothing to train or to measure
    elif request.device == "cuda":
        device = "auto"
    searcher = make_searcher(embeddings, ids, kind, device=device, progress=progress)
    return SearchRecord(
        kind=kind.name,
        factory=kind.factory,
        effort=None if kind.factory == EXACT else searcher.effort,
        request=request,
        note=note,
        file=store(path, f"index/knn_g{generation}.faiss", len(ids), searcher.engine.write),
    )


def read_searcher(
    path: Path,
    record: SearchRecord,
    embeddings: Embeddings,
    ids: Int64[ndarray, " images"],
    *,
    device: str = "cpu",
    mmap: bool = False,
) -> RescoringSearcher[FaissEngine]:
    """Load the search structure that a manifest names, once it is certain to be one of ours.

    Args:
        path: The index.
        record: What the manifest says about it.
        embeddings: The rows it was made from, and maybe others.
        ids: Of these rows; ascending, or in the order they were added.
        device: `"auto"`, `"cpu"` or `"cuda"`: where to search.
        mmap: Leave the lists of an IVF kind on disk and read what a query visits; for an index
            larger than memory. Such an index is searched on the CPU.

    Raises:
        ValueError: If the kind is unknown, the file is damaged or holds something else, or the
            device cannot be had.
    """
    kind, dim = _recorded_kind(path, record), embeddings.shape[1]
    on_gpu = _is_on_gpu("cpu" if mmap and device == "auto" else device, kind, dim)
    if mmap and on_gpu:
        raise ValueError("a memory-mapped index is searched on the CPU; use device cpu")
    structure = read_structure(path, record.file, kind, dim, mmap=mmap and kind.is_ivf)
    held = held_ids(structure)
    if not np.array_equal(held, ids):
        rows = np.minimum(np.searchsorted(ids, held), len(ids) - 1)
        if len(np.unique(held)) < len(held) or (ids[rows] != held).any():
            raise damaged(path / record.file.name, "its ids are not those of the metadata")
        embeddings, ids = embeddings.take(rows), held

    def make(on_gpu: bool) -> RescoringSearcher[FaissEngine]:
        engine = FaissEngine(structure, on_gpu=on_gpu)
        return RescoringSearcher(engine, embeddings, ids, effort=record.effort)

    return _or_on_cpu(make, device, on_gpu=on_gpu)


def check_search_file(path: Path, record: SearchRecord, dim: int) -> None:
    """Make sure that the file of a search structure, looked at alone, is what was written.

    Raises:
        ValueError: If the kind is unknown, or the file is damaged or holds something else.
    """
    read_structure(path, record.file, _recorded_kind(path, record), dim, mmap=False)


def _recorded_kind(path: Path, record: SearchRecord) -> Kind:
    if record.kind not in (*KINDS, FACTORY):
        known = ", ".join(KINDS)
        raise ValueError(f"the index is of kind {record.kind!r}; this program reads {known}")
    if not accepts_factory(record.factory):
        raise damaged(path / MANIFEST, f"it has the factory string {record.factory!r:.80}")
    return Kind(name=record.kind, factory=record.factory)


def _is_on_gpu(device: str, kind: Kind, dim: int) -> bool:
    """Whether a kind is built and searched on a GPU.

    Args:
        device: `"auto"` (if FAISS sees one and the kind runs there), `"cpu"` or `"cuda"`.
        kind: Of structure.
        dim: Of the vectors.

    Raises:
        ValueError: If the name is unknown, or `cuda` is asked for and cannot be had.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cpu":
        return False
    if gpu.gpu_count() == 0:
        if device == "cuda":
            raise ValueError("device cuda was asked for, but FAISS sees no GPU; use auto or cpu")
        return False
    if not (runs := runs_on_gpu(kind, dim)) and device == "cuda":
        raise ValueError(
            f"kind {kind.name} ({kind.factory}) runs on a CPU only; use device auto or cpu, or "
            "one of the kinds Flat, Flat16, IVFFlat, IVFSQ8, IVFPQ"
        )
    return runs


def _or_on_cpu(make: Callable[[bool], _Made], device: str, *, on_gpu: bool) -> _Made:
    """Make something on the GPU, or on the CPU if it does not fit and nobody asked for `cuda`.

    Args:
        make: Told whether to use the GPU.
        device: What was asked for.
        on_gpu: What `_is_on_gpu` made of it.

    Raises:
        gpu.DoesNotFitError: If `cuda` was asked for.
    """
    try:
        return make(on_gpu)
    except gpu.DoesNotFitError:
        if device == "cuda":
            raise
        return make(False)


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
        with progress_of("search index", len(ids), unit="img", shown=progress) as bar:
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
