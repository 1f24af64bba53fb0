"""Indexing end to end against the encoder alone, and against the same job done by hand.

    python benchmarks/indexing_speed.py --data DATA [--images 10000] [--encoder NAME] [--repeats 3]

DATA is what `Corpus.open` takes, or Parquet files only where the comparison by hand is wanted. All
ways of a repeat take turns on the same images; medians are kept. Memory is the peak (VmHWM) of a
process of its own per number of rows: it builds with an untrained encoder of one small block, on a
corpus that repeats the images of DATA, so that it measures the indexing and not the encoder.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import torch
from by_hand import index_by_hand
from numpy.typing import NDArray
from provenance import provenance, without_paths, write_result

from indexing import Corpus, DecodedBatch, ImageIndex, embedding
from indexing import build as building
from matvit.checkpoint import DEFAULT
from matvit.config import MatViTConfig
from matvit.embed import embed, resolve_device
from matvit.model import MatViT
from matvit.preprocess import Preprocess

_BATCH = 256
_DECODERS: dict[str, dict[str, Any]] = {
    "calling thread": {"workers": 0},
    "one thread": {"workers": 1},
    "threads": {},
    "processes": {"processes": True},
}


class TimedCorpus(Corpus):
    """A corpus that notes how long its caller waits for decoded images."""

    waited = 0.0

    def subset(self, indices: Any) -> Corpus:  # noqa: ANN401 -- as the corpus takes them
        """Keep the clock with the part."""
        part = super().subset(indices)
        decode = part.decode_with

        def timed(*arguments: Any, **options: Any) -> Iterator[DecodedBatch]:  # noqa: ANN401
            batches = decode(*arguments, **options)
            while True:
                start = perf_counter()
                batch = next(batches, None)
                self.waited += perf_counter() - start
                if batch is None:
                    return
                yield batch

        part.decode_with = timed  # type: ignore[method-assign]
        return part


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--encoder", default=DEFAULT)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", default="10000,100000,1000000", help="for the peak memory")
    parser.add_argument("--name", default="indexing")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of is not None:
        print(json.dumps(_memory(given.data, given.memory_of)))
        return

    model = MatViT.load(given.encoder, device=resolve_device("auto"))
    corpus = Corpus.open(given.data)
    corpus = corpus.subset(range(min(given.images, len(corpus))))
    rows = [int(row) for row in given.rows.split(",") if row]
    result = {
        **provenance("python benchmarks/indexing_speed.py " + without_paths(sys.argv[1:])),
        "encoder": model.name,
        "images": len(corpus),
        "repeats": given.repeats,
        "decode_images_per_s": compare_decoders(corpus, model.preprocess, given.repeats),
        "end_to_end": compare_ways(model, corpus, given.data, given.repeats),
        "memory": [_memory_of_a_process(given.data, row) for row in rows],
    }
    write_result(given.name, result)


def compare_decoders(corpus: Corpus, preprocess: Preprocess, repeats: int) -> dict[str, float]:
    """Decode the same images in turn by each kind of workers, and nothing else."""
    rates: dict[str, list[float]] = {name: [] for name in _DECODERS}
    for _ in range(repeats):
        for name, options in _DECODERS.items():
            start = perf_counter()
            for _batch in corpus.decode(preprocess, batch_size=_BATCH, **options):
                pass
            rates[name].append(len(corpus) / (perf_counter() - start))
    return {name: round(median(values), 1) for name, values in rates.items()}


def compare_ways(model: MatViT, corpus: Corpus, data: str, repeats: int) -> dict[str, Any]:
    """Encode decoded pixels, index with this project, and index by hand, in turn."""
    pixels = np.concatenate([batch.pixels for batch in corpus.decode(model.preprocess)])
    embed(model, pixels[:_BATCH])  # the first batch also pays for what is set up once
    alone, ours, by_hand, splits = [], [], [], []
    for _ in range(repeats):
        alone.append(_rate(len(pixels), lambda: embed(model, pixels, batch_size=_BATCH)))
        seconds, split = _build(model, corpus)
        ours.append(len(corpus) / seconds)
        splits.append(split)
        by_hand.append(_by_hand(model, data, len(corpus)))
    known = [rate for rate in by_hand if rate is not None]
    return {
        "encoder_alone_images_per_s": round(median(alone), 1),
        "ours_images_per_s": round(median(ours), 1),
        "ours_of_encoder_alone": round(median(np.divide(ours, alone).tolist()), 3),
        "ours_seconds": {
            name: round(median(split[name] for split in splits), 3) for name in splits[0]
        },
        "by_hand_images_per_s": round(median(known), 1) if known else None,
        "ours_of_by_hand": round(median(np.divide(ours, known).tolist()), 3) if known else None,
    }


def _rate(images: int, work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return images / (perf_counter() - start)


def _build(model: MatViT, corpus: Corpus) -> tuple[float, dict[str, float]]:
    """Build an index; seconds in all, and in which part the main thread spent them."""
    timed = TimedCorpus(corpus._images, corpus._positions)
    spent = {"encode": 0.0, "write": 0.0}

    def clock(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed_work(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            start = perf_counter()
            try:
                return work(*arguments, **options)
            finally:
                spent[name] += perf_counter() - start

        return timed_work

    write = building.write_shard
    embedding.embed, building.write_shard = clock("encode", embed), clock("write", write)
    try:
        with tempfile.TemporaryDirectory() as folder:
            start = perf_counter()
            ImageIndex.build(model, timed, Path(folder) / "index", batch_size=_BATCH)
            seconds = perf_counter() - start
    finally:
        embedding.embed, building.write_shard = embed, write
    parts = {"waiting for pixels": timed.waited, **spent}
    return seconds, {**parts, "the rest": seconds - sum(parts.values()), "all": seconds}


def _by_hand(model: MatViT, data: str, images: int) -> float | None:
    """Images per second of timm, a DataLoader and FAISS by hand; None without Parquet files."""
    files = sorted(Path(data).parent.glob(Path(data).name))
    if not files or any(file.suffix != ".parquet" for file in files):
        return None
    tables = [pq.read_table(file, columns=["image"]) for file in files]
    with tempfile.TemporaryDirectory() as folder:
        return _rate(images, lambda: index_by_hand(model, tables, images, Path(folder) / "by_hand"))


def _memory_of_a_process(data: str, rows: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--data", data, "--memory-of", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _memory(data: str, rows: int) -> dict[str, Any]:
    """Build an index of so many rows here and say how much memory that took at most."""
    torch.manual_seed(0)
    config = MatViTConfig(img_size=8, patch_size=8, embed_dim=256, depth=1, num_heads=4)
    model = MatViT(config, Preprocess(image_size=8), "untrained").eval()
    corpus = Corpus.open(data)
    positions: NDArray[np.int64] = np.arange(rows) % len(corpus)
    before = _peak_mb()
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        building.build_index(
            model, corpus.subset(positions), path, batch_size=_BATCH, progress=False
        )
        built, seconds = _peak_mb(), perf_counter() - start
        ImageIndex.open(path)
    return {
        "rows": rows,
        "vectors_mb_float16": round(rows * config.embed_dim * 2 / 1e6, 1),
        "before_mb": before,
        "built_mb": built,
        "opened_mb": _peak_mb(),
        "seconds": round(seconds, 1),
        "threads": faiss.omp_get_max_threads(),
    }


def _peak_mb() -> float:
    """Most memory this process has had so far, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return round(int(found[1]) * 1024 / 1e6, 1)


if __name__ == "__main__":
    main()
