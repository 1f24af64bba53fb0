"""A process killed at every step leaves the old state or the new one, never a mixture.

Mutants these must catch: the manifest written before a file it names; a file rewritten in place;
files removed before the commit; an interrupted run that starts from nothing, or gives other ids.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
import warnings

import numpy as np
import pytest
from faults import every_crash
from toy import DIM, ToyEncoder, photo
from tqdm import tqdm

from indexing import Corpus, Decoders, ImageIndex, compact, verify_index, write
from indexing.remove import remove_images
from indexing.search.request import KindRequest
from indexing.store.folder import read_manifest

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="there is no fork"),
    pytest.mark.timeout(900),  # hundreds of processes, each of which may have to wait for a CPU
]

DECODERS = Decoders(batch_size=9)
QUERIES = np.random.default_rng(1).standard_normal((5, DIM)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_shards_and_no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a step all the same
    for module in (write, compact):
        monkeypatch.setattr(module, "SHARD_SIZE", 4)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for number in range(7):
        photo(root / f"{number % 2}/{number}.png", number)
    (root / "0/bad.png").write_text("no image")
    return root


def state(path):
    """All that can be asked of an index, or None where there is none that opens."""
    try:
        index = ImageIndex.open(path)
    except (FileNotFoundError, ValueError) as error:
        if re.search("no index at|is unfinished", str(error)):
            return None
        raise
    ids, scores = index.search(QUERIES, 3)
    rows = index.metadata.drop_columns(["position"]).to_pylist()
    vectors = index.embeddings[:].tolist()
    return rows, vectors, ids.tolist(), scores.tolist(), index.failures, index.class_names


def assert_crash_safe(base, work, action, before, after):
    """Kill `action` at each step; it must leave `before` or `after`, and finish when repeated."""
    seen, stored = set(), 0
    for step, path in every_crash(base, work, action):
        found = state(path)
        assert found in (before, after), f"a mixture after step {step}"
        seen.add(found == after)
        manifest = read_manifest(path) if (path / "manifest.json").exists() else None
        if manifest and manifest.staged:  # not opened above
            assert verify_index(path).ok, f"damage after step {step}"
            rows = sum(shard.metadata.rows for shard in manifest.staged)
            assert rows >= stored, f"stored images lost at step {step}"
            stored = rows
        if found == before:
            action(path)
            assert state(path) == after, f"another result when repeated after step {step}"
        if step % 8 == 0:
            ImageIndex.open(path).compact()
            assert state(path) == after
            assert verify_index(path).orphans == ()
    assert seen == {False, True}


def build_from(photos):
    def action(path):
        corpus, asked = Corpus.open(photos), KindRequest()
        write.build_index(ToyEncoder(), corpus, path, request=asked, decoders=DECODERS)

    return action


@pytest.fixture
def built(photos, tmp_path):
    build_from(photos)(tmp_path / "built")
    return tmp_path / "built"


@pytest.fixture
def updated(photos, built):
    """An index after an addition and a removal, and photos that have changed since."""
    photo(photos / "0/7.png", 7)
    index = ImageIndex.open(built)
    index.add(ToyEncoder(), Corpus.open(photos)).remove([1, 7])
    return built


def test_build(photos, built, tmp_path):
    (tmp_path / "work").mkdir()
    action = build_from(photos)
    assert_crash_safe(tmp_path / "none", tmp_path / "work", action, None, state(built))


def test_add(photos, built, tmp_path):
    before = state(built)
    photo(photos / "0/bad.png", 20)
    photo(photos / "1/1.png", 21)
    photo(photos / "2/new.png", 22)
    (photos / "0/2.png").rename(photos / "2/renamed.png")
    (photos / "0/4.png").write_text("broken now")
    (photos / "2/other.png").write_text("no image")
    (photos / "1/3.png").unlink()

    def action(path):
        corpus = Corpus.open(photos)
        write.add_images(ToyEncoder(), corpus, path, remove_missing=True, decoders=DECODERS)

    after = state_after(action, built, tmp_path)
    assert_crash_safe(built, tmp_path, action, before, after)
    kept = {row["sha256"]: row["id"] for row in before[0]}
    for row in after[0]:
        assert row["id"] == kept.get(row["sha256"], row["id"])
    assert [failure.path for failure in after[4]] == ["0/4.png", "2/other.png"]


def test_remove(updated, tmp_path):
    before = state(updated)

    def action(path):
        remove_images(path, [3], ["0/bad.png"])

    after = state_after(action, updated, tmp_path)
    assert [row["id"] for row in after[0]] == [0, 2, 4, 5, 6]
    assert_crash_safe(updated, tmp_path, action, before, after)


def test_compact(updated, tmp_path):
    before = state(updated)

    def action(path):
        compact.compact_index(path, progress=False)

    seen = set()
    for step, path in every_crash(updated, tmp_path, action):
        assert state(path) == before, f"another state after step {step}"
        seen.add(read_manifest(path).counts.removed)
        action(path)
        assert state(path) == before
        assert read_manifest(path).counts.removed == 0
        assert verify_index(path).orphans == ()
    assert seen == {0, 2}


def test_repair(built, tmp_path):
    before = state(built)
    damaged = built / "index/knn_g1.faiss"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for step, path in every_crash(built, tmp_path, lambda path: verify_index(path, repair=True)):
        assert verify_index(path, repair=True).ok, f"not repaired after step {step}"
        assert state(path) == before


def state_after(action, base, tmp_path):
    whole = shutil.copytree(base, tmp_path / "whole")
    action(whole)
    return state(whole)


def test_killed_at_a_few_moments_nobody_chose(photos, built, tmp_path):
    """A handful of what benchmarks/crash.py does hundreds of times."""
    after = state(built)
    for number in range(3):
        path = tmp_path / f"killed-{number}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            tqdm.set_lock(threading.RLock())  # else it dies with one that it shares with us
            build_from(photos)(path)
            os._exit(0)
        time.sleep(0.01 * 3**number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if state(path) is None:
            build_from(photos)(path)
        assert state(path) == after
