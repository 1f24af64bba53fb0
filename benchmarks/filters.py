"""Searching among some of the images: what is found and how long it takes, by their share.

    python benchmarks/filters.py

Images that may be found are drawn at random, and, harder, are those farthest from the queries: a
search that fetches more than it was asked for then sees none of them for long. Recall is that of
the ten nearest that may be found, against a comparison with each of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import faiss
import numpy as np
from kinds import RANKS, made
from numpy.typing import NDArray
from provenance import provenance, without_paths, write_result

from indexing.search.kinds import named_kind
from indexing.search.live import LiveSearcher
from indexing.search.making import make_searcher

SHARES = (1.0, 0.5, 0.3, 0.1, 0.01)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="+", default=["Flat", "HNSW", "IVFFlat", "IVFSQ8"])
    parser.add_argument("--queries", type=int, default=100)
    given = parser.parse_args()
    command = "python benchmarks/filters.py " + without_paths(sys.argv[1:])
    rows: list[dict[str, Any]] = []
    result = {
        **provenance(command.strip()),
        "threads_of_faiss": faiss.omp_get_max_threads(),
        "images": given.vectors,
        "rows": rows,
    }
    with tempfile.TemporaryDirectory() as folder:
        embeddings, queries = made(Path(folder), given.vectors)
        queries, ids = queries[: given.queries], np.arange(given.vectors)
        for name in given.kinds:
            kind = named_kind(name, *embeddings.shape)
            searcher = make_searcher(embeddings, ids, kind, progress=True)
            for share in SHARES:
                for far in (False, True) if share < 1 else (False,):
                    among = chosen(embeddings[:], queries, share, far=far)
                    live = LiveSearcher(searcher, ids)
                    exact = searcher.nearest_among(queries, RANKS, among)[0]
                    rows.append(
                        {
                            "kind": name,
                            "share": share,
                            "far": far,
                            **measure(live, queries, among, exact),
                        }
                    )
                    print(rows[-1], file=sys.stderr)
    write_result("filters", result)


def chosen(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], share: float, *, far: bool
) -> NDArray[np.int64]:
    """Ids of images that may be found."""
    count = max(RANKS, round(share * len(vectors)))
    if far:
        order = np.argsort(vectors @ queries.mean(axis=0), kind="stable")
    else:
        order = np.random.default_rng(0).permutation(len(vectors))
    return np.sort(order[:count]).astype(np.int64)


def measure(
    live: LiveSearcher,
    queries: NDArray[np.float32],
    among: NDArray[np.int64],
    exact: NDArray[np.int64],
) -> dict[str, float]:
    """Ask one query at a time; recall, and the median of the milliseconds."""
    shared, took = [], []
    for query, right in zip(queries, exact, strict=True):
        start = perf_counter()
        ids, _ = live.search(query[None], RANKS, among)
        took.append(1000 * (perf_counter() - start))
        shared.append(np.isin(ids[0], right).mean())
    return {"recall": float(np.mean(shared)), "ms": median(took)}


if __name__ == "__main__":
    main()
