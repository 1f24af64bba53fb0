"""LOCK deleted while it is held: the index opens afterwards, and nobody's commit is lost unsaid.

Mutants these must catch: a commit without a look at the lock; a lock looked up by its name; a file
name used twice; a commit on top of a state that nobody saw.
"""

from __future__ import annotations

import os
import shutil

import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex, remove, stage, verify_index
from indexing.store import files, folder
from indexing.store.folder import commit, read_manifest, writer_lock

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be deleted")


@pytest.fixture
def photos(tmp_path):
    for number in range(6):
        photo(tmp_path / f"photos/{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def index(photos, tmp_path):
    return ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "index")


def test_writer_whose_lock_was_deleted_commits_nothing(index, monkeypatch):
    before = (index.path / "manifest.json").read_bytes()

    def late(path, manifest):
        (path / "LOCK").unlink()
        commit(path, manifest)

    monkeypatch.setattr(remove, "commit", late)
    with pytest.raises(BlockingIOError, match="LOCK was deleted while it was held"):
        index.remove([1])
    assert (index.path / "manifest.json").read_bytes() == before
    assert verify_index(index.path).ok


@pytest.mark.parametrize("moment", ["before the commit", "in the middle of it"])
def test_two_writers_at_once_leave_an_index_that_opens(index, photos, monkeypatch, moment):
    """The second one has a lock of its own, since somebody deleted that of the first."""
    photo(photos / "new.png", 20)
    corpus = Corpus.open(photos)
    begun = []

    def second_writer():
        if not begun:
            begun.append(True)
            (index.path / "LOCK").unlink()
            other = ImageIndex.open(index.path).add(ToyEncoder(), corpus)
            begun.append(other.report.added)

    def late(path, manifest):
        second_writer()
        commit(path, manifest)

    def later(path, *given, **named):
        second_writer()
        return files.write_atomically(path, *given, **named)

    if moment == "before the commit":
        monkeypatch.setattr(stage, "commit", late)
    else:
        monkeypatch.setattr(folder, "write_atomically", later)
    with pytest.raises(BlockingIOError, match=r"LOCK was deleted|was changed by another process"):
        index.add(ToyEncoder(), corpus)
    assert begun == [True, 1]
    assert verify_index(index.path).ok
    assert len(ImageIndex.open(index.path)) == 7


def test_commit_on_top_of_a_state_that_the_writer_has_not_seen_is_refused(index):
    with writer_lock(index.path):
        manifest = read_manifest(index.path)
        (index.path / "manifest.json").write_bytes(
            (index.path / "manifest.json").read_bytes() + b"\n"
        )
        with pytest.raises(BlockingIOError, match="was changed by another process although"):
            commit(index.path, manifest)


def test_no_name_of_a_file_is_used_twice(index, photos):
    """Files that another writer has left unnamed are passed over."""
    for name in ("img_emb/img_emb_000041.npy", "index/knn_g17.faiss"):
        (index.path / name).write_bytes(b"of somebody else")
    photo(photos / "new.png", 20)
    manifest = read_manifest(index.add(ToyEncoder(), Corpus.open(photos)).path)
    assert [shard.number for shard in manifest.shards] == [0, 42]
    assert (manifest.generation, manifest.index.file.name) == (18, "index/knn_g18.faiss")
    with pytest.raises(FileExistsError):
        files.store(index.path, "index/knn_g18.faiss", 0, lambda stream: stream.write(b"again"))
    assert verify_index(index.path).ok


def test_index_with_a_file_missing_names_the_state_before_if_that_is_whole(index, photos):
    photo(photos / "new.png", 20)
    index.add(ToyEncoder(), Corpus.open(photos))
    (index.path / "index/knn_g2.faiss").unlink()
    with pytest.raises(
        ValueError, match=r"knn_g2.faiss is damaged: it is missing; .* manifest.json.prev"
    ):
        ImageIndex.open(index.path)
    shutil.copy(index.path / "manifest.json.prev", index.path / "manifest.json")
    (index.path / "img_emb/img_emb_000000.npy").unlink()
    with pytest.raises(
        ValueError, match=r"it is missing; restore it from a copy or build the index again$"
    ):
        ImageIndex.open(index.path)


def test_folder_of_a_new_index_is_synced_into_the_one_above(photos, tmp_path, monkeypatch):
    synced = []
    sync = folder.sync_folder
    monkeypatch.setattr(folder, "sync_folder", lambda path: (synced.append(path), sync(path)))
    ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "a/b/index")
    assert synced[:3] == [tmp_path / "a/b", tmp_path / "a", tmp_path]


def test_note_in_a_lock_that_would_write_to_the_terminal_is_not_shown(index):
    with writer_lock(index.path):
        (index.path / "LOCK").write_text("\x1b]0;gone\x07 process 1")
        with pytest.raises(BlockingIOError, match="is being written by another process; wait"):
            index.remove([1])
