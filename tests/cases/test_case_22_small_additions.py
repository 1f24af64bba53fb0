"""Many small additions: files, disk and descriptors stay bounded, and no trouble is called damage.

Mutants these must catch: a descriptor kept for each shard; small shards that nobody joins; what
was replaced left on the disk; a dead row that comes back when shards are joined; a machine out of
descriptors or a disk that cannot be read taken for a file that is damaged.
"""

from __future__ import annotations

import errno
import os
import resource
import warnings
from pathlib import Path

import numpy as np
import pytest
from toy import DIM, ToyEncoder, expected_embedding, photo

from indexing import Corpus, ImageIndex, compact, verify_index
from indexing.store.folder import read_manifest
from matvit import files as matvit_files
from matvit import writing
from retrieval.tuning.journal import read_checked, write_checked

QUERIES = np.random.default_rng(1).standard_normal((5, DIM)).astype(np.float32)
TOY = ToyEncoder()


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def photos(tmp_path):
    for number in range(4):
        photo(tmp_path / f"photos/{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def index(photos, tmp_path):
    return ImageIndex.build(TOY, Corpus.open(photos), tmp_path / "index")


def files_of(index):
    return [path for path in index.path.rglob("*") if path.is_file()]


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_additions_and_removals_leave_files_disk_and_descriptors_flat(index, photos):
    """What 300 of them do is measured by benchmarks/cycles.py."""
    counted = []
    for cycle in range(40):
        photo(photos / f"new-{cycle}.png", 100 + cycle)
        index = index.add(TOY, Corpus.open(photos))
        (photos / f"new-{cycle - 1}.png").unlink(missing_ok=True)
        index = index.remove([int(index.ids[1 if cycle % 3 else 0])])
        index = index.add(TOY, Corpus.open(photos))  # what is still in the folder comes back
        index = index.add(TOY, Corpus.open(photos), remove_missing=True)
        counted.append((len(files_of(index)), sum(path.stat().st_size for path in files_of(index))))
    number, size = zip(*counted, strict=True)
    assert max(number[20:]) <= max(number[:20])
    assert max(size[20:]) <= 1.1 * max(size[:20])
    assert len(read_manifest(index.path).shards) <= compact.MANY_SHARDS
    assert verify_index(index.path).ok
    assert sorted(index.paths) == sorted(path.name for path in photos.iterdir())
    for row, name in enumerate(index.paths):
        np.testing.assert_allclose(
            index.embeddings[row], expected_embedding(photos / name), atol=1e-3
        )


def test_joined_shards_answer_as_they_did_and_what_was_removed_stays_so(
    index, photos, monkeypatch, tmp_path
):
    """Large shards keep their dead rows, and the list of them, until somebody compacts."""
    monkeypatch.setattr(compact, "SHARD_SIZE", 6)  # the first shard is not small
    index = index.remove([1])
    ids, before = {name: int(i) for name, i in zip(index.paths, index.ids, strict=True)}, index
    (photos / "1.png").unlink()
    for number in range(compact.MANY_SHARDS - 1):
        photo(photos / f"new-{number}.png", 100 + number)
        index = index.add(TOY, Corpus.open(photos))
    index = index.remove(paths=["new-2.png"])
    (photos / "new-2.png").unlink()
    assert len(read_manifest(index.path).shards) == compact.MANY_SHARDS
    photo(photos / "last.png", 200)
    joined = index.add(TOY, Corpus.open(photos))
    manifest = read_manifest(index.path)
    assert (len(manifest.shards), manifest.counts.removed) == (1 + 2, 1)
    assert joined.report.generation == manifest.generation
    assert verify_index(index.path).ok
    assert "1.png" not in joined.paths
    assert "new-2.png" not in joined.paths
    for name, number in ids.items():
        assert joined.ids[joined.paths.index(name)] == number
    everything = np.stack([expected_embedding(photos / name) for name in joined.paths])
    np.testing.assert_allclose(joined.embeddings[:], everything, atol=1e-3)
    assert np.isin(before.search(QUERIES, 3)[0], before.ids).all()  # readers keep what they had
    assert len(joined.compact()) == len(joined)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nobody counts descriptors here")
def test_open_index_holds_no_descriptor_however_many_shards_it_has(index, photos, monkeypatch):
    monkeypatch.setattr(compact, "MANY_SHARDS", 1_000)
    for number in range(12):
        photo(photos / f"new-{number}.png", 100 + number)
        index = index.add(TOY, Corpus.open(photos))
    assert len(read_manifest(index.path).shards) == 13
    before = descriptors()
    opened = ImageIndex.open(index.path)
    opened.search(QUERIES, 5)
    assert descriptors() == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (before + 8, before + 8))
            found = ImageIndex.open(index.path).search(QUERIES, 5)
            same = np.array_equal(found[0], opened.search(QUERIES, 5)[0])
            code = 0 if same and len(opened.compact()) == len(opened) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "code", [errno.EMFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EACCES]
)
@pytest.mark.parametrize("name", ["img_emb_000000.npy", "metadata_000000.parquet", "knn_g1.faiss"])
def test_trouble_of_the_machine_or_the_disk_is_never_called_damage(index, monkeypatch, code, name):
    plain = writing.open_regular

    def failing(path):
        if str(path).endswith(name):
            raise OSError(code, os.strerror(code), str(path))
        return plain(path)

    def no_map(path):
        raise OSError(code, os.strerror(code), os.fsdecode(path))

    monkeypatch.setattr(writing, "open_regular", failing)
    if name.startswith("img"):
        monkeypatch.setattr("pyarrow.memory_map", no_map)
    with pytest.raises(OSError, match=os.strerror(code)) as raised:
        ImageIndex.open(index.path)
    assert "damaged" not in str(raised.value)
    if code in (errno.EMFILE, errno.ENOMEM):
        with pytest.raises(OSError, match=os.strerror(code)):
            verify_index(index.path)
    else:
        report = verify_index(index.path)
        assert (report.ok, report.damaged) == (False, ())
        assert [found.file.split("/")[1] for found in report.unreadable] == [name]
    monkeypatch.undo()
    assert verify_index(index.path).ok


def test_tuning_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    write_checked(tmp_path / "tuning.json", {"a": 1})

    def failing(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(matvit_files, "open_regular", failing)
    with pytest.raises(OSError, match="Input/output error"):
        read_checked(tmp_path / "tuning.json")
