"""How long judging 10,000 queries against 100,000 images takes, and how much memory.

    python benchmarks/metrics.py [--queries 10000] [--images 100000] [--classes 200]

Vectors and labels are made up. Each metric is timed by itself on tables of the depth it needs; the
peak memory is that of a process that does all of it, above what it had before.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import faiss
import numpy as np
from provenance import provenance, without_paths, write_result

from retrieval import metrics

DIM = 256
K = 10
_BATCH = 1024


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=200)
    given = parser.parse_args()

    rng = np.random.default_rng(0)
    stored, asked = (
        rng.standard_normal((count, DIM), dtype=np.float32)
        for count in (given.images, given.queries)
    )
    labels = rng.integers(0, given.classes, given.images)
    wanted = rng.integers(0, given.classes, given.queries)
    index = faiss.IndexFlatIP(DIM)
    index.add(stored)
    index.search(asked[:_BATCH], K)
    before = _peak_mb()
    result = {
        **provenance("python benchmarks/metrics.py " + without_paths(sys.argv[1:])),
        "queries": given.queries,
        "images": given.images,
        "classes": given.classes,
        **_judge(index, asked, labels, wanted),
        "peak_mb_above_the_index": _peak_mb() - before,
    }
    write_result("metrics", result)


def _judge(index: faiss.Index, asked: Any, labels: Any, wanted: Any) -> dict[str, Any]:  # noqa: ANN401
    count = np.bincount(labels)
    deepest = int(count.max())
    spent = dict.fromkeys(
        ("search 10", "search R", "hit_rate@1", "recall@10", "overlap@10", "map@r", "drop_self"),
        0.0,
    )

    def timed(name: str, work: Any, *arguments: Any) -> Any:  # noqa: ANN401
        start = perf_counter()
        value = work(*arguments)
        spent[name] += perf_counter() - start
        return value

    for start in range(0, len(asked), _BATCH):
        part, mine = asked[start : start + _BATCH], wanted[start : start + _BATCH]
        ids = timed("search 10", index.search, part, K)[1]
        deep = timed("search R", index.search, part, deepest)[1]
        total = count[mine]
        relevant = metrics.relevance(labels[ids], mine)
        timed("drop_self", metrics.drop_self, ids, mine[:, None])
        timed("hit_rate@1", metrics.hit_rate, relevant, total, 1)
        timed("recall@10", metrics.recall, relevant, total, K)
        timed("overlap@10", metrics.overlap, ids, deep[:, :K], K)
        timed("map@r", metrics.map_at_r, metrics.relevance(labels[deep], mine), total)
    return {"ranks_of_map": deepest, "seconds": {name: round(s, 3) for name, s in spent.items()}}


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return round(int(peak) / 1000, 1)


if __name__ == "__main__":
    main()
