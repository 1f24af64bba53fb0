"""Files on disk: whole or not at all, recognised by hash, one writer at a time.

Mutants these must catch: writing to the target itself; a temporary file left as the target; a
lock that outlives its process; a clean-up that takes files of others along.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from indexing.store.files import StoredFile, check_hash, check_size, store
from indexing.store.files import write_atomically as write
from indexing.store.folder import commit, read_manifest, remove_index, writer_lock


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_written_file_is_described_by_size_and_hash(tmp_path):
    written = write(tmp_path / "file", lambda stream: stream.write(b"content"))
    assert (tmp_path / "file").read_bytes() == b"content"
    assert written == (7, hashlib.sha256(b"content").hexdigest())
    assert names(tmp_path) == {"file"}


def test_interrupted_write_leaves_the_old_content(tmp_path):
    (tmp_path / "file").write_bytes(b"old")

    def interrupted(stream):
        stream.write(b"ne")
        stream.flush()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "file", interrupted)
    assert (tmp_path / "file").read_bytes() == b"old"


def test_open_reader_keeps_the_old_content(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with (tmp_path / "file").open("rb") as reader:
        write(tmp_path / "file", lambda stream: stream.write(b"new"))
        assert reader.read() == b"old"


def test_file_that_did_not_arrive_whole_is_an_error_and_replaces_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"old")

    def lossy(stream):
        stream.write(b"0123456789")
        stream.flush()
        os.truncate(stream.name, 4)

    with pytest.raises(OSError, match="wrote 10 bytes to .* but 4 are there"):
        write(tmp_path / "file", lossy)
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.fixture
def stored(tmp_path) -> StoredFile:
    return store(tmp_path, "index/knn_g1.faiss", 3, lambda stream: stream.write(b"vectors"))


def test_stored_file_passes_its_checks(tmp_path, stored):
    check_size(tmp_path, stored)
    check_hash(tmp_path, stored)
    assert (stored.rows, stored.bytes) == (3, 7)


def test_missing_file_is_named(tmp_path, stored):
    (tmp_path / stored.name).unlink()
    with pytest.raises(ValueError, match=r"knn_g1.faiss is damaged: it is missing; restore it"):
        check_size(tmp_path, stored)


def test_truncated_file_is_named(tmp_path, stored):
    (tmp_path / stored.name).write_bytes(b"vector")
    with pytest.raises(ValueError, match=r"knn_g1.faiss is damaged: it has 6 bytes, .* says 7"):
        check_size(tmp_path, stored)


def test_flipped_bit_is_found_by_the_hash(tmp_path, stored):
    (tmp_path / stored.name).write_bytes(b"vectorr")
    check_size(tmp_path, stored)
    with pytest.raises(ValueError, match=r"knn_g1.faiss is damaged: its content is not what was"):
        check_hash(tmp_path, stored)


def test_folder_without_a_manifest_is_no_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="no index at .*: it has no manifest.json; build"):
        read_manifest(tmp_path)


def test_manifest_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format_version": 1')
    with pytest.raises(ValueError, match=r"cannot read .*manifest.json: it is not complete JSON"):
        read_manifest(tmp_path)


def test_commit_keeps_the_manifest_before(tmp_path):
    class Fake:
        def __init__(self, text):
            self.to_json = lambda: text

    commit(tmp_path, Fake(b"first"))
    assert names(tmp_path) == {"manifest.json"}
    commit(tmp_path, Fake(b"second"))
    assert (tmp_path / "manifest.json").read_bytes() == b"second"
    assert (tmp_path / "manifest.json.prev").read_bytes() == b"first"


def test_second_writer_fails_at_once_and_learns_who_the_first_is(tmp_path):
    message = f"is being written by process {os.getpid()} on .*; wait until it is done"
    with (
        writer_lock(tmp_path),
        pytest.raises(BlockingIOError, match=message),
        writer_lock(tmp_path),
    ):
        pass
    with writer_lock(tmp_path):
        pass


def test_lock_dies_with_its_process(tmp_path):
    code = (
        "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); "
        "lock.acquire(); print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "LOCK")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError), writer_lock(tmp_path):
            pass
        other.kill()
    with writer_lock(tmp_path):
        pass


def test_clean_up_takes_only_what_an_index_writes(tmp_path):
    ours = ("img_emb/img_emb_000000.npy", "img_emb/img_emb_000001.npy.tmp", "index/knn_g1.faiss")
    theirs = ("metadata/notes.txt", "photo.jpg")
    for name in (*ours, *theirs, "manifest.json.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_index(tmp_path)
    assert names(tmp_path) == {"metadata", "photo.jpg"}
    assert names(tmp_path / "metadata") == {"notes.txt"}
