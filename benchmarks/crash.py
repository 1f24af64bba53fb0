"""Kill writers of an index at random moments, and see what is left.

    python benchmarks/crash.py

Each moment: a process builds an index, adds to it, removes from it or compacts it, and is killed
(SIGKILL) at a time drawn evenly from 0 to 1.2 times what that takes, counted from when the process
says that it begins; so about one in six has finished by then, and the others are killed before or
after the commit that makes the new state. What it leaves must be the old state or the new one;
every shard that a manifest names must be whole; and the same call, repeated, must give the result
of one that was never killed, bit for bit. A process that ends in any other way than killed or done
ends the benchmark. The encoder is a tiny one, untrained.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import faiss
import numpy as np
import torch
from PIL import Image
from provenance import provenance, without_paths, write_result
from tqdm import tqdm

from indexing import Corpus, ImageIndex, compact, read_manifest, verify_index, write
from matvit import MatViT, MatViTConfig, Preprocess

SIDE, PHOTOS, SHARD_SIZE = 16, 40, 8
TIMED = 5
OUTCOMES = ("finished", "old", "new", "mixture", "damaged", "different_when_repeated")

Action = Callable[[Path], object]


def main() -> None:
    """Kill, check, repeat, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)  # a forked process has no other threads to wake
    write.SHARD_SIZE = compact.SHARD_SIZE = SHARD_SIZE
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.moments, np.random.default_rng(given.seed))
    command = "python benchmarks/crash.py " + without_paths(sys.argv[1:])
    row = {"photos": PHOTOS, "shard_size": SHARD_SIZE, "operations": rows}
    write_result("crash", {**provenance(command.strip()), **row})


def measure(work: Path, moments: int, chance: np.random.Generator) -> list[dict[str, Any]]:
    """Kill each operation at its share of the moments and count what was left."""
    operations = prepare(work)
    rows = []
    for number, (name, (base, action)) in enumerate(operations.items()):
        before, copy = state(base), work / "whole"
        times = []
        for _ in range(TIMED):
            shutil.rmtree(copy, ignore_errors=True)
            if base.exists():
                shutil.copytree(base, copy)
            times.append(time_of(lambda: action(copy)))  # noqa: B023 -- called at once
        took, after = median(times), state(copy)
        shutil.rmtree(copy)
        share = moments // len(operations) + (number < moments % len(operations))
        row = {"operation": name, "moments": share, "seconds": round(took, 3)}
        counts = dict.fromkeys(OUTCOMES, 0)
        for _ in tqdm(range(share), desc=name):
            killed_after = chance.uniform(0, 1.2 * took)
            for outcome in one_moment(base, copy, action, killed_after, before, after):
                counts[outcome] += 1
            shutil.rmtree(copy, ignore_errors=True)
        rows.append({**row, **counts})
    return rows


def tiny_model() -> MatViT:
    """An untrained encoder that costs nearly nothing."""
    torch.manual_seed(0)
    config = MatViTConfig(img_size=SIDE, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    return MatViT(config, Preprocess(img_size=SIDE), "tiny")


def prepare(work: Path) -> dict[str, tuple[Path, Action]]:
    """For each operation, the index it starts from and what it does."""
    model = tiny_model()
    few, many = work / "few", work / "many"
    for number in range(PHOTOS):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        for folder in (many, few) if number < PHOTOS // 2 else (many,):
            folder.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    base = work / "base"
    ImageIndex.build(model, Corpus.open(few), base)
    shutil.rmtree(few)
    many.rename(few)  # the folder has grown since
    grown = shutil.copytree(base, work / "grown")
    ImageIndex.open(grown).add(model, Corpus.open(few))
    worn = shutil.copytree(grown, work / "worn")
    ImageIndex.open(worn).remove(range(0, PHOTOS, 3))
    return {
        "build": (work / "none", lambda path: ImageIndex.build(model, Corpus.open(few), path)),
        "add": (base, lambda path: ImageIndex.open(path).add(model, Corpus.open(few))),
        "remove": (grown, lambda path: ImageIndex.open(path).remove(range(0, PHOTOS, 2))),
        "compact": (worn, lambda path: ImageIndex.open(path).compact()),
    }


def one_moment(
    base: Path, copy: Path, action: Action, seconds: float, before: object, after: object
) -> list[str]:
    """Kill an action on a copy after some time; say what was left and what was wrong with it."""
    if base.exists():
        shutil.copytree(base, copy)
    finished = kill_after(seconds, lambda: action(copy))
    found = state(copy)
    done = found == after if after != before else not read_manifest(copy).counts.removed
    whole = found in (before, after)
    outcomes = ["mixture" if not whole else "new" if done else "old"]
    if finished:
        outcomes.append("finished")
        if not done:
            raise RuntimeError(f"the process said that it had finished, but left {outcomes[0]}")
    if (copy / "manifest.json").exists() and not verify_index(copy).ok:
        outcomes.append("damaged")
    if not done:
        action(copy)
    if state(copy) != after or not verify_index(copy).ok:
        outcomes.append("different_when_repeated")
    return outcomes


def time_of(action: Callable[[], object]) -> float:
    """Seconds that an action takes in a child process like those that are killed.

    Raises:
        RuntimeError: If it does not finish.
    """
    child = begin(action)
    start = perf_counter()
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RuntimeError(f"the process did not finish: it ended with {code}")
    return perf_counter() - start


def kill_after(seconds: float, action: Callable[[], object]) -> bool:
    """Run an action in a child process that lives no longer than this.

    Returns:
        Whether it finished before it was killed.

    Raises:
        RuntimeError: If it ended in another way.
    """
    child = begin(action)
    sleep(seconds)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the process was neither killed nor done: it ended with {code}")
    return code == 0


def begin(action: Callable[[], object]) -> int:
    """Start a child process that does an action; return its number when it is about to."""
    ready, begins = os.pipe()
    child = os.fork()
    if child == 0:
        tqdm.set_lock(threading.RLock())  # else it may die holding one that it shares with us
        code = 1
        try:
            os.write(begins, b"!")
            action()
            code = 0
        except BaseException:  # noqa: BLE001 -- the exit code tells
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(begins)
    os.read(ready, 1)
    os.close(ready)
    return child


def state(path: Path) -> object:
    """All that an index answers, or None where none opens."""
    if not (path / "manifest.json").exists() or read_manifest(path).plan is not None:
        return None
    index = ImageIndex.open(path)
    vectors = index.embeddings.raw(slice(None))
    ids, scores = index.search(vectors[:5].astype(np.float32), 10)
    rows = index.metadata.drop_columns(["position"]).to_pylist()
    return rows, vectors.tobytes(), ids.tolist(), scores.tolist(), index.failures


if __name__ == "__main__":
    main()
