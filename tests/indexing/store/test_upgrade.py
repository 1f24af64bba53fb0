"""An index of format version 1 opens, answers as before, and takes updates."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy import DIM, ToyEncoder, photo

from indexing import Corpus, ImageIndex
from indexing.store.files import sha256_of


@pytest.fixture
def photos(tmp_path):
    for number in range(5):
        photo(tmp_path / f"photos/a/{number}.png", number)
    (tmp_path / "photos/a/bad.png").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def old(photos, tmp_path):
    """An index as version 1 wrote it: no hash of the manifest, no size and time of failures."""
    path = tmp_path / "index"
    ImageIndex.build(ToyEncoder(), Corpus.open(photos), path)
    failures = path / "failures/failures_000000.parquet"
    columns = ["path", "error", "message", "position"]
    pq.write_table(pq.read_table(failures).select(columns), failures)
    values = json.loads((path / "manifest.json").read_bytes())
    for key in ("next_shard", "staged", "plan", "adding", "tombstones", "failures", "sha256"):
        del values[key]
    del values["counts"]["removed"]
    values["index"] = {key: values["index"][key] for key in ("kind", "file")}
    values["format_version"] = 1
    values["shards"][0]["failures"].update(
        bytes=failures.stat().st_size, sha256=sha256_of(failures)
    )
    (path / "manifest.json").write_text(json.dumps(values, indent=2))
    (path / "manifest.json.prev").unlink()
    return path


def test_old_index_opens_and_is_whole(old):
    index = ImageIndex.open(old, ToyEncoder())
    assert index.paths == [f"a/{number}.png" for number in range(5)]
    assert [(failure.path, failure.mtime_ns) for failure in index.failures] == [("a/bad.png", -1)]
    assert index.search(np.ones((1, DIM), np.float32), 5)[0].shape == (1, 5)
    assert index.verify().ok


def test_old_index_takes_updates(old, photos):
    index = ImageIndex.open(old)
    photo(photos / "b/new.png", 9)
    index = index.add(ToyEncoder(), Corpus.open(photos))
    report = index.report
    assert (report.added, report.unchanged, report.failed) == (1, 5, 1)
    index = index.remove([0]).compact()
    assert index.ids.tolist() == [1, 2, 3, 4, 5]
    assert index.paths[-1] == "b/new.png"
    assert index.verify().ok
    assert json.loads((old / "manifest.json").read_bytes())["format_version"] == 4
