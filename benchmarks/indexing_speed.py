"""Indexing end to end against the encoder alone, and against the same job done by hand.

    python benchmarks/indexing_speed.py --data DATA [--images 10000] [--encoder NAME] [--repeats 3]
    python benchmarks/indexing_speed.py --data DATA --parts memory --append     one part again

DATA is what `Corpus.open` takes, or Parquet files only where the comparison by hand is wanted. All
ways of a repeat take turns on the same images; medians are kept. Besides the time, the CPU seconds
of all threads and processes are counted: other work on the machine lengthens the one, not the
other. Where encoding keeps every core busy, decoding can only be done at its expense, so that CPU
seconds of the encoder over those of encoder and decoder together is the most that can be reached.

Memory is that of a process of its own per number of rows: it builds an exact index with an
untrained encoder of one small block, on a corpus that repeats the images of DATA, so that it
measures the indexing and not the encoder. The search structure keeps all vectors as float32.
`_mb` is the most memory of its own (RssAnon, looked at every few milliseconds); what is mapped
from the embeddings on disk comes on top while there is room, and is in the peak (VmHWM) too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from by_hand import index_by_hand
from numpy.typing import NDArray
from provenance import RESULTS, provenance, without_paths, write_result

from indexing import Corpus, DecodedBatch, Decoders, ImageIndex, KindRequest, write
from indexing.corpus.decoding import DecodePool
from indexing.search.request import EXACT
from matvit import DEFAULT_ENCODER, MatViT, MatViTConfig, Preprocess, embed, resolve_device

PARTS = ["decoding", "ways", "memory"]
_BATCH = 256
_BATCHES = Decoders(batch_size=_BATCH)
_LOOK_S = 0.005
_DECODERS = {
    "calling thread": Decoders(workers=0),
    "one thread": Decoders(workers=1),
    "threads": Decoders(),
    "processes": Decoders(processes=True),
}


@dataclass(frozen=True, eq=False)
class TimedCorpus(Corpus):
    """A corpus that notes how many seconds its caller waits for decoded images.

    Attributes:
        waits: One after the other; parts of the corpus note theirs in the same list.
    """

    waits: list[float] = field(kw_only=True)

    def decode_with(self, pool: DecodePool) -> Iterator[DecodedBatch]:
        """Look at the clock whenever a batch is asked for."""
        batches = super().decode_with(pool)
        while True:
            start = perf_counter()
            batch = next(batches, None)
            self.waits.append(perf_counter() - start)
            if batch is None:
                return
            yield batch


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", default="10000,100000,1000000", help="for the peak memory")
    parser.add_argument("--name", default="indexing")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--append", action="store_true", help="Keep other parts of the result.")
    parser.add_argument("--note", default="", help="What else was going on.")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of is not None:
        print(json.dumps(_memory(given.data, given.memory_of)))
        return

    model = MatViT.load(given.encoder, device=resolve_device("auto"))
    corpus = Corpus.open(given.data)
    corpus = corpus.subset(range(min(given.images, len(corpus))))
    conditions = {
        **provenance("python benchmarks/indexing_speed.py " + without_paths(sys.argv[1:])),
        "encoder": model.name,
        "note": given.note,
    }
    path = RESULTS / f"{given.name}.json"
    result = json.loads(path.read_text(encoding="utf-8")) if given.append else {}
    for part in given.parts:
        if part == "memory":
            result[part] = {**conditions, "rows": []}
            for row in given.rows.split(","):
                result[part]["rows"].append(_memory_of_a_process(given.data, int(row)))
                write_result(given.name, result)
            continue
        counted = {**conditions, "images": len(corpus), "repeats": given.repeats}
        if part == "decoding":
            rows = compare_decoders(corpus, model.preprocess, given.repeats)
            result[part] = {**counted, "rows": rows}
        else:
            result[part] = {**counted, **compare_ways(model, corpus, given.data, given.repeats)}
        write_result(given.name, result)


def compare_decoders(
    corpus: Corpus, preprocess: Preprocess, repeats: int
) -> list[dict[str, str | float]]:
    """Decode the same images in turn by each kind of workers, and nothing else."""
    costs: dict[str, list[Cost]] = {name: [] for name in _DECODERS}
    for _ in range(repeats):
        for name, decoders in _DECODERS.items():
            costs[name].append(_cost(lambda: _decode(corpus, preprocess, decoders)))  # noqa: B023
    return [
        {
            "decoders": name,
            "images_per_s": round(len(corpus) / median(cost.seconds for cost in taken), 1),
            "cpu_ms_per_image": round(1e3 * median(cost.cpu for cost in taken) / len(corpus), 4),
        }
        for name, taken in costs.items()
    ]


def _decode(corpus: Corpus, preprocess: Preprocess, decoders: Decoders) -> None:
    for _batch in corpus.decode(preprocess, decoders):
        pass


def compare_ways(model: MatViT, corpus: Corpus, data: str, repeats: int) -> dict[str, Any]:
    """Encode decoded pixels, index with this project, and index by hand, in turn."""
    pixels = np.concatenate([batch.pixels for batch in corpus.decode(model.preprocess)])
    embed(model, pixels[:_BATCH])  # the first batch also pays for what is set up once
    by_hand = _by_hand(model, data, len(corpus))
    ways: dict[str, Callable[[], object]] = {
        "encoder alone": lambda: embed(model, pixels, batch_size=_BATCH),
        "decoder alone": lambda: _decode(corpus, model.preprocess, Decoders()),
        "ours": lambda: splits.append(_build(model, corpus)),
        **({"by hand": by_hand} if by_hand else {}),
    }
    splits: list[dict[str, float]] = []
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            costs[name].append(_cost(work))
    return {
        "ways": [_way(name, taken, len(corpus)) for name, taken in costs.items()],
        "ours_of_encoder_alone": _ratio(costs, "encoder alone", "ours"),
        "most_that_can_be_reached": {
            name: float(f"{median(_limits(costs, name)):.3f}") for name in Cost._fields
        },
        "ours_of_by_hand": _ratio(costs, "by hand", "ours") if by_hand else None,
        "ours_seconds": {
            name: round(median(split[name] for split in splits), 3) for name in splits[0]
        },
    }


def _way(name: str, taken: list[Cost], images: int) -> dict[str, Any]:
    return {
        "way": name,
        "images_per_s": round(images / median(cost.seconds for cost in taken), 1),
        "cpu_ms_per_image": round(1e3 * median(cost.cpu for cost in taken) / images, 4),
        "images_per_s_all": [round(images / cost.seconds, 1) for cost in taken],
    }


def _ratio(costs: dict[str, list[Cost]], reference: str, way: str) -> dict[str, float]:
    """How fast a way is as a share of another: median over the repeats, by time and by CPU."""
    pairs = list(zip(costs[reference], costs[way], strict=True))
    return {
        "seconds": round(median(one.seconds / other.seconds for one, other in pairs), 3),
        "cpu": round(median(one.cpu / other.cpu for one, other in pairs), 3),
    }


def _limits(costs: dict[str, list[Cost]], name: str) -> list[float]:
    """Share of the encoder's speed that is left if decoding takes from the same cores."""
    return [
        getattr(encoding, name) / (getattr(encoding, name) + getattr(decoding, name))
        for encoding, decoding in zip(costs["encoder alone"], costs["decoder alone"], strict=True)
    ]


class Cost(NamedTuple):
    """What work took: by the clock, and on all cores together, processes it started included."""

    seconds: float
    cpu: float


def _cost(work: Callable[[], object]) -> Cost:
    start, before = perf_counter(), sum(os.times()[:4])
    work()
    return Cost(perf_counter() - start, sum(os.times()[:4]) - before)


def _build(model: MatViT, corpus: Corpus) -> dict[str, float]:
    """Build an index; say in which part the main thread spent how many seconds."""
    timed = TimedCorpus(corpus.source, corpus.positions, waits=[])
    spent = {"encode": 0.0, "write": 0.0}

    def clock(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed_work(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            start = perf_counter()
            try:
                return work(*arguments, **options)
            finally:
                spent[name] += perf_counter() - start

        return timed_work

    write_shard = write.write_shard
    write.embed, write.write_shard = clock("encode", embed), clock("write", write_shard)
    try:
        with tempfile.TemporaryDirectory() as folder:
            start = perf_counter()
            ImageIndex.build(model, timed, Path(folder) / "index", decoders=_BATCHES)
            seconds = perf_counter() - start
    finally:
        write.embed, write.write_shard = embed, write_shard
    parts = {"waiting for pixels": sum(timed.waits), **spent}
    return {**parts, "the rest": seconds - sum(parts.values()), "all": seconds}


def _by_hand(model: MatViT, data: str, images: int) -> Callable[[], object] | None:
    """Indexing with timm, a DataLoader and FAISS by hand; None without Parquet files."""
    files = sorted(Path(data).parent.glob(Path(data).name))
    if not files or any(file.suffix != ".parquet" for file in files):
        return None
    tables = [pq.read_table(file, columns=["image"]) for file in files]

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            index_by_hand(model, tables, images, Path(folder) / "by_hand")

    return work


def _memory_of_a_process(data: str, rows: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--data", data, "--memory-of", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _memory(data: str, rows: int) -> dict[str, Any]:
    """Build an index of so many rows here and say how much memory that took at most."""
    torch.manual_seed(0)
    config = MatViTConfig(img_size=8, patch_size=8, embed_dim=256, depth=1, num_heads=4)
    model = MatViT(config, Preprocess(img_size=8), "untrained").eval()
    corpus = Corpus.open(data)
    positions: NDArray[np.int64] = np.arange(rows) % len(corpus)
    before = _memory_mb("RssAnon")
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        request = KindRequest(kind=EXACT)
        images = corpus.subset(positions)
        with _Watch() as building_it:
            write.build_index(model, images, path, request=request, decoders=_BATCHES)
        seconds = perf_counter() - start
        start = perf_counter()
        with _Watch() as opening_it:
            index = ImageIndex.open(path)
        opened = perf_counter() - start
        metadata = index.metadata.nbytes / 1e6
    return {
        "rows": rows,
        "structure_mb": round(rows * (config.embed_dim * 4 + 8) / 1e6, 1),
        "metadata_mb": round(metadata, 1),
        "mapped_mb": round(rows * config.embed_dim * 2 / 1e6, 1),
        "before_mb": before,
        "built_mb": building_it.most_mb,
        "opened_mb": opening_it.most_mb,
        "peak_mb": _memory_mb("VmHWM"),
        "build_s": round(seconds, 1),
        "open_s": round(opened, 3),
    }


class _Watch:
    """Looks at the memory of this process until it is left."""

    def __enter__(self) -> _Watch:
        self.most_mb = _memory_mb("RssAnon")
        self._done = Event()
        self._thread = Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(_LOOK_S):
            self.most_mb = max(self.most_mb, _memory_mb("RssAnon"))


def _memory_mb(kind: str) -> float:
    """Memory of this process as Linux counts it, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{kind}:\s+(\d+) kB", status)
    assert found is not None
    return round(int(found[1]) * 1024 / 1e6, 1)


if __name__ == "__main__":
    main()
