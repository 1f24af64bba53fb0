"""Every kind of index against FAISS used by hand with the same parameters.

    python benchmarks/kinds.py                          100,000 and 1,000,000 synthetic vectors
    python benchmarks/kinds.py --index photos.index     the embeddings of an index
    python benchmarks/kinds.py --append --kinds HNSW    what was measured of other kinds stays

Raw FAISS is the same structure, trained the same way, with the same nprobe or efSearch, asked for
ten images, on the same device; for the quantised kinds followed by FAISS's own reranking,
`IndexRefine` over float16 vectors in memory, at the depth that our effort has. Ours reads the
float16 vectors from disk, checks them, breaks ties, and answers with exact scores. Both are read
from the same file first: what was just filled lies otherwise in memory. The two take
turns, and the ratio is that of the medians of one run; that of the fastest tenth is given too,
since other work on the machine lengthens some turns. Each kind is written when it is done.

The synthetic vectors lie around centres, fifty around each, with less and less spread along their
dimensions: about as large a share of the lists must be visited as for embeddings of real images.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import faiss
import msgspec
import numpy as np
from numpy.typing import NDArray
from provenance import RESULTS, provenance, without_paths, write_result

from indexing import KINDS, Effort, ImageIndex
from indexing.search import gpu
from indexing.search.faiss_engine import FaissEngine
from indexing.search.kinds import Kind, named_kind, split
from indexing.search.making import make_searcher, read_searcher
from indexing.search.request import KindRequest
from indexing.search.scoring import SPARE
from indexing.search.searcher import RescoringSearcher
from indexing.store.embeddings import Embeddings, unit_queries
from indexing.store.files import store
from indexing.store.manifest import SearchRecord

DIM = 256
RANKS = 10
QUERIES = 1_000
SINGLE = 100
ROUNDS = 6
_PER_CENTRE = 50
_NOISE = 0.7
_SPREAD = 80.0
_SHARD = 16_384

Search = Callable[[NDArray[np.float32]], object]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--index", type=Path)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--result", default="kinds")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--append", action="store_true", help="Keep what is in the result.")
    parser.add_argument("--note", default="", help="What else was going on.")
    given = parser.parse_args()

    command = "python benchmarks/kinds.py " + without_paths(sys.argv[1:])
    conditions = {
        **provenance(command.strip()),
        "threads_of_faiss": faiss.omp_get_max_threads(),
        "vectors": "embeddings of an index" if given.index else "synthetic",
        "note": given.note,
    }
    runs = _runs(given.result) if given.append else []
    rows: list[dict[str, Any]] = []
    for count in [0] if given.index else given.vectors:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            embeddings, queries = _stored(given.index) if given.index else made(folder, count)
            compared = compare(folder, embeddings, queries, given.kinds, given.device, given.rounds)
            for row in compared:
                rows.append(row)
                run = {**conditions, "rows": rows}
                write_result(given.result, {"runs": [*_without(runs, run), run]})


def _runs(result: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{result}.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return runs


def _without(runs: list[dict[str, Any]], newer: dict[str, Any]) -> list[dict[str, Any]]:
    """Earlier runs, without what was measured again."""

    def what(run: dict[str, Any], row: dict[str, Any]) -> tuple[object, ...]:
        return run["vectors"], row["kind"], row["images"], row["device"]

    again = {what(newer, row) for row in newer["rows"]}
    left = [
        {**run, "rows": [row for row in run["rows"] if what(run, row) not in again]} for run in runs
    ]
    return [run for run in left if run["rows"]]


def compare(
    folder: Path,
    embeddings: Embeddings,
    queries: NDArray[np.float32],
    kinds: list[str],
    device: str,
    rounds: int,
) -> Iterator[dict[str, Any]]:
    """Measure each kind on one set of vectors."""
    exact: NDArray[np.int64] | None = None
    for name in kinds:
        kind = named_kind(name, *embeddings.shape)
        start = perf_counter()
        ids = np.arange(len(embeddings))
        index = make_searcher(embeddings, ids, kind, device=device, progress=True)
        built = perf_counter() - start
        if exact is None:
            exact = index.nearest_rows(queries, RANKS)[0]
        yield _measure(folder, index, embeddings, kind, queries, exact, built, device, rounds)
        del index
        gc.collect()


def _measure(
    folder: Path,
    index: RescoringSearcher[FaissEngine],
    embeddings: Embeddings,
    kind: Kind,
    queries: NDArray[np.float32],
    exact: NDArray[np.int64],
    built: float,
    device: str,
    rounds: int,
) -> dict[str, Any]:
    file = store(folder, "index/knn_g1.faiss", len(index.ids), index.write)
    start = perf_counter()
    dim = embeddings.shape[1]
    chosen = index.effort
    record = SearchRecord(
        kind=kind.name, factory=kind.factory, effort=chosen, request=KindRequest(),
        note=None, file=file,
    )  # fmt: skip
    index = read_searcher(folder, record, embeddings, index.ids, device=device)
    opened = perf_counter() - start
    found, _ = index.search(queries, RANKS)
    structure = faiss.read_index(str(folder / file.name))
    raw = _by_hand(structure, chosen, embeddings, on_gpu=device == "cuda")
    raw_found = raw(queries)[1]
    batch = _turns(lambda asked: index.search(asked, RANKS), raw, [queries], rounds)
    ones = [queries[row : row + 1] for row in range(min(SINGLE, len(queries)))]
    single = _turns(lambda asked: index.search(asked, RANKS), raw, ones, rounds)
    return {
        "kind": kind.name,
        "factory": kind.factory,
        "images": len(index.ids),
        "dim": dim,
        "device": device,
        "bytes": file.bytes,
        "build_s": round(built, 2),
        "open_s": round(opened, 3),
        **msgspec.to_builtins(chosen),
        "ann_recall@10": _recall(found, exact),
        "raw_ann_recall@10": _recall(raw_found, exact),
        "batch_queries": len(queries),
        "batch_ms_per_query": batch[0].median * 1e3 / len(queries),
        "raw_batch_ms_per_query": batch[1].median * 1e3 / len(queries),
        "batch_ratio": batch[0].median / batch[1].median,
        "batch_ratio_of_fastest": batch[0].fastest / batch[1].fastest,
        "single_ms": single[0].median * 1e3,
        "raw_single_ms": single[1].median * 1e3,
        "single_ratio": single[0].median / single[1].median,
        "single_ratio_of_fastest": single[0].fastest / single[1].fastest,
        "single_overhead_us_of_fastest": (single[0].fastest - single[1].fastest) * 1e6,
    }


def _by_hand(
    faiss_index: faiss.Index, chosen: Effort, embeddings: Embeddings, *, on_gpu: bool
) -> Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Return a search as somebody would write it with FAISS alone."""
    if chosen.nprobe:
        faiss.extract_index_ivf(faiss_index).nprobe = chosen.nprobe
    if chosen.ef_search:
        graph = faiss.downcast_index(faiss_index.index).hnsw
        graph.efSearch = max(chosen.ef_search, RANKS + SPARE)
    engine = FaissEngine(faiss_index, on_gpu=False)
    if on_gpu:
        rotation, inner = split(faiss_index)
        on_device: Any = gpu.clone(inner)
        if chosen.nprobe:
            on_device.nprobe = chosen.nprobe
        whole = on_device if rotation is None else faiss.IndexPreTransform(rotation, on_device)
        whole.parts = faiss_index, on_device  # which it does not own
        faiss_index = whole
    if engine.is_exact or not engine.estimates:
        return lambda asked: faiss_index.search(asked, RANKS)
    refined = faiss.IndexScalarQuantizer(
        embeddings.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    refined.train(embeddings[:2])
    for start in range(0, len(embeddings), _SHARD):
        refined.add(embeddings[start : start + _SHARD])
    both = faiss.IndexRefine(faiss_index, refined)
    both.k_factor = max(RANKS + SPARE, RANKS * chosen.rescore) / RANKS
    return lambda asked: both.search(asked, RANKS)


class _Seconds(NamedTuple):
    """What a search took."""

    median: float
    fastest: float

    @classmethod
    def of(cls, times: list[float]) -> _Seconds:
        return cls(median(times), float(np.quantile(times, 0.1)))


def _turns(
    ours: Search, raw: Search, batches: list[NDArray[np.float32]], rounds: int
) -> tuple[_Seconds, _Seconds]:
    """What each takes, one after the other in every round.

    At each turn the two ask different things if there are several, and change places if not: what
    the first has read would be in the cache of the processor for the second.
    """
    searches = (ours, raw)
    seconds: tuple[list[float], list[float]] = ([], [])
    shift = len(batches) // 2
    for turn in range(rounds * len(batches) + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            asked = batches[(turn + which * shift) % len(batches)]
            start = perf_counter()
            searches[which](asked)
            seconds[which].append(perf_counter() - start)
    return _Seconds.of(seconds[0][1:]), _Seconds.of(seconds[1][1:])


def _recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    shared = [len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)]
    return float(np.mean(shared) / RANKS)


def made(folder: Path, count: int) -> tuple[Embeddings, NDArray[np.float32]]:
    """Store vectors around random centres, and draw queries around the same."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(count // _PER_CENTRE, 1), DIM), dtype=np.float32)
    files = []
    for number, start in enumerate(range(0, count, _SHARD)):
        rows = _around(centres, min(_SHARD, count - start), rng).astype(np.float16)
        name = f"img_emb/img_emb_{number:06d}.npy"
        files.append(store(folder, name, len(rows), lambda s, rows=rows: np.save(s, rows)))
    return Embeddings(folder, files, DIM), _around(centres, QUERIES, rng)


def _around(
    centres: NDArray[np.float32], count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    near = centres[rng.integers(0, len(centres), count)]
    near += _NOISE * rng.standard_normal(near.shape, dtype=np.float32)
    return unit_queries(near * np.exp(np.arange(DIM) / -_SPREAD).astype(np.float32), DIM)


def _stored(path: Path) -> tuple[Embeddings, NDArray[np.float32]]:
    """Take the embeddings of an index; slightly moved rows of it are the queries."""
    embeddings = ImageIndex.open(path).embeddings
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(embeddings), min(QUERIES, len(embeddings)), replace=False))
    vectors = embeddings[rows]
    moved = vectors + 0.3 / np.sqrt(vectors.shape[1]) * rng.standard_normal(vectors.shape)
    return embeddings, unit_queries(moved, vectors.shape[1])


if __name__ == "__main__":
    main()
