"""Damage, full disks and crowds: found or survived, never served.

Mutants these must catch: a size not checked; a hash not checked, of any file; a file that is read
before it is checked; an error of the disk swallowed; a reader that misses files a writer removed.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import struct
import threading
import warnings
from pathlib import Path

import faiss
import numpy as np
import pytest
from msgspec.structs import replace
from toy import DIM, ToyEncoder, photo

from indexing import Corpus, ImageIndex, verify_index, write
from indexing.search.making import check_search_file, read_searcher
from indexing.store.files import sha256_of
from indexing.store.folder import read_manifest
from indexing.store.rows import StoredRows

QUERIES = np.random.default_rng(1).standard_normal((5, DIM)).astype(np.float32)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for number in range(9):
        photo(root / f"{number % 2}/{number}.png", number)
    (root / "0/bad.png").write_text("no image")
    return root


@pytest.fixture
def index(photos, tmp_path, monkeypatch):
    """An index of three shards, one image less than it stores."""
    monkeypatch.setattr(write, "SHARD_SIZE", 4)
    index = ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "index")
    return index.remove([3])


def answers(path):
    index = ImageIndex.open(path)
    everything = (index.search(QUERIES, 8), index.embeddings[:], index.ids, index.labels)
    return repr((everything, index.paths, index.failures, index.info()))


def damaged_copies(index, damage):
    """Each file of an index, damaged in turn in each of several ways."""
    names = [file.name for file in read_manifest(index.path).files]
    assert {name.split("_")[0].split("/")[0] for name in names} == {
        "img", "metadata", "failures", "tombstones", "index"
    }  # fmt: skip
    for name in (*names, "manifest.json"):
        path = index.path / name
        content = path.read_bytes()
        for changed in damage(content):
            path.write_bytes(changed)
            yield name
        path.write_bytes(content)


def assert_named(path, name):
    """Neither opening nor verifying takes the damage for good."""
    with pytest.raises(ValueError, match=re.escape(name)):
        answers(path)
    if name == "manifest.json":
        with pytest.raises(ValueError, match="manifest.json"):
            verify_index(path)
    else:
        report = verify_index(path)
        assert not report.ok
        assert [damage.file for damage in report.damaged] == [name]


def test_truncated_file_of_any_kind_is_named(index):
    def cuts(content):
        return [content[: len(content) * part // 4] for part in range(4)] + [content[:-1]]

    for name in damaged_copies(index, cuts):
        if name == "manifest.json" and (index.path / name).read_bytes()[-2:] == b"\n}":
            continue  # only the line end at its end is missing: nothing is lost
        assert_named(index.path, name)


def test_junk_behind_a_file_is_found(index):
    for name in damaged_copies(index, lambda content: [content + b"x"]):
        assert_named(index.path, name)


def test_flipped_bit_in_any_file_is_found(index):
    right = answers(index.path)

    def flips(content):
        for offset in range(0, len(content), max(1, len(content) // 8)):
            changed = bytearray(content)
            changed[offset] ^= 1 << offset % 8
            yield bytes(changed)

    for name in damaged_copies(index, flips):
        if name == "manifest.json" and harmless(index.path, right):
            continue  # a blank between two words, say
        assert_named(index.path, name)


def harmless(path, right):
    try:
        return answers(path) == right
    except ValueError:
        return False


def test_embeddings_are_checked_before_the_first_row_is_served(index):
    path = index.path / "img_emb/img_emb_000001.npy"
    opened = ImageIndex.open(index.path)
    fresh = opened._manifest  # what another reader would open
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    from indexing.store.rows import StoredRows

    embeddings = StoredRows(index.path, fresh, fresh.shards).live_embeddings()
    assert embeddings[:3].shape == (3, DIM)
    with pytest.raises(ValueError, match="img_emb_000001.npy is damaged: its content is not"):
        embeddings[:]


def test_search_file_of_another_generation_is_refused(index, photos):
    photo(photos / "0/new.png", 30)
    index.add(ToyEncoder(), Corpus.open(photos))
    names = sorted(path.name for path in (index.path / "index").iterdir())
    assert names == ["knn_g1.faiss", "knn_g3.faiss"]
    shutil.copy(index.path / "index/knn_g1.faiss", index.path / "index/knn_g3.faiss")
    with pytest.raises(ValueError, match="knn_g3.faiss is damaged"):
        ImageIndex.open(index.path)


def test_manifest_of_an_older_generation_opens_it_or_names_what_is_gone(index):
    older = (index.path / "manifest.json.prev").read_bytes()
    (index.path / "manifest.json").write_bytes(older)
    assert len(ImageIndex.open(index.path)) == 9
    index.remove([1])
    older = (index.path / "manifest.json").read_bytes()
    ImageIndex.open(index.path).compact()
    (index.path / "manifest.json").write_bytes(older)
    with pytest.raises(ValueError, match="is damaged: it is missing"):
        ImageIndex.open(index.path)


def test_exact_index_that_claims_more_than_it_holds_is_refused_before_faiss_reads_it(
    index, monkeypatch
):
    """FAISS would ask for half a terabyte; the hash is right, as that of a forged index is."""
    manifest = read_manifest(index.path)
    path = index.path / manifest.index.file.name
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<Q", 9 * DIM))  # how many numbers follow
    struct.pack_into("<Q", content, place, 1 << 37)
    path.write_bytes(content)
    forged = replace(manifest.index, file=replace(manifest.index.file, sha256=sha256_of(path)))
    rows = StoredRows(index.path, manifest, manifest.shards)
    monkeypatch.setattr(faiss, "read_index", None)
    for read in (
        lambda: read_searcher(index.path, forged, *rows.searchable()),
        lambda: check_search_file(index.path, forged, DIM),
    ):
        with pytest.raises(ValueError, match=f"{path.name} is damaged: "):
            read()


def test_damaged_manifest_names_the_one_before(index):
    (index.path / "manifest.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"manifest.json.prev: copy that to manifest.json"):
        ImageIndex.open(index.path)


def test_damaged_search_file_is_made_anew_only_when_asked(index):
    right = index.search(QUERIES, 8)
    path = index.path / "index/knn_g1.faiss"
    path.write_bytes(path.read_bytes()[:-9])
    assert [damage.file for damage in verify_index(index.path).damaged] == ["index/knn_g1.faiss"]
    report = verify_index(index.path, repair=True)
    assert (report.ok, report.repaired) == (True, ("index/knn_g1.faiss",))
    for found, expected in zip(ImageIndex.open(index.path).search(QUERIES, 8), right, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_damaged_embeddings_are_named_and_not_repaired(index):
    path = index.path / "img_emb/img_emb_000000.npy"
    path.write_bytes(path.read_bytes()[:-9])
    report = verify_index(index.path, repair=True)
    assert [damage.file for damage in report.damaged] == ["img_emb/img_emb_000000.npy"]
    assert report.repaired == ()


def test_compacting_refuses_to_copy_damage(index):
    path = index.path / "img_emb/img_emb_000000.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    before = (index.path / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="img_emb_000000.npy is damaged"):
        index.compact()
    assert (index.path / "manifest.json").read_bytes() == before
    assert path.exists()


def writers(photos):
    def grow(path):
        ImageIndex.open(path).add(ToyEncoder(), Corpus.open(photos))

    return {
        "add": grow,
        "remove": lambda path: ImageIndex.open(path).remove([1], paths=["0/bad.png"]),
        "compact": lambda path: ImageIndex.open(path).compact(),
    }


@pytest.mark.parametrize("writer", ["add", "remove", "compact"])
def test_disk_that_fails_at_any_write_leaves_old_or_new(
    index, photos, tmp_path, monkeypatch, writer
):
    photo(photos / "0/new.png", 30)
    before = answers(index.path).replace(str(index.path), "")
    for step in range(100):
        path = shutil.copytree(index.path, tmp_path / f"full-{step}")
        calls = iter(range(1000))

        def full(descriptor, calls=calls, step=step):
            if next(calls) == step:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                writers(photos)[writer](path)
                break
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        assert not list(path.rglob("*.tmp"))
        found = answers(path).replace(str(path), "")
        if writer == "compact":
            assert len(ImageIndex.open(path)) == 8
        elif found == before:
            writers(photos)[writer](path)
        assert verify_index(path).ok
    assert step > 5


@pytest.mark.parametrize("limit", [0, 300, 1_000])
def test_file_size_limit_stops_a_build_cleanly_and_the_next_one_finishes(photos, tmp_path, limit):
    path = tmp_path / "limited"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            ImageIndex.build(ToyEncoder(), Corpus.open(photos), path)
        except OSError as error:
            code = 0 if error.errno == errno.EFBIG else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    index = ImageIndex.build(ToyEncoder(), Corpus.open(photos), path)
    assert len(index) == 9
    assert index.verify().ok


class FullDisk:
    """A stream that has no room left."""

    def __init__(self, stream):
        self._stream = stream

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "name",
    ["img_emb_000000.npy", "metadata_000000.parquet", "knn_g1.faiss", "tombstones_g2.npy",
     "manifest.json"],
)  # fmt: skip
def test_full_disk_is_called_one_and_the_file_is_named(photos, tmp_path, monkeypatch, name):
    """FAISS and Arrow say other things, or nothing."""
    plain = Path.open

    def opened(path, mode="r", *given, **named):
        stream = plain(path, mode, *given, **named)
        return FullDisk(stream) if mode == "xb" and path.name.startswith(f"{name}.") else stream

    path = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(OSError, match="No space left on device") as raised:
            ImageIndex.build(ToyEncoder(), Corpus.open(photos), path).remove([1])
    assert raised.value.filename.endswith(f"/{name}")
    assert not list(path.rglob("*.tmp"))


def test_reader_keeps_its_generation_whatever_a_writer_does(index, photos):
    reader = ImageIndex.open(index.path)
    search = [part.tolist() for part in reader.search(QUERIES, 8)]
    photo(photos / "0/new.png", 30)
    index.add(ToyEncoder(), Corpus.open(photos)).remove([0, 5]).compact()
    assert not (index.path / "img_emb/img_emb_000000.npy").exists()
    assert [part.tolist() for part in reader.search(QUERIES, 8)] == search
    norms = np.linalg.norm(reader.embeddings[:].astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)
    assert (len(reader), reader.info()["generation"]) == (8, 2)


def test_index_that_changes_itself_leaves_the_one_in_hand_as_it_was(index, photos):
    photo(photos / "0/new.png", 30)
    for change in (
        lambda index: index.add(ToyEncoder(), Corpus.open(photos)),
        lambda index: index.remove([0]),
        lambda index: index.compact(),
    ):
        held, before = vars(index).copy(), repr((index.search(QUERIES, 8), index.info()))
        after = change(index)
        assert repr((index.search(QUERIES, 8), index.info())) == before
        assert all(vars(index)[name] is value for name, value in held.items())
        assert (
            after.report.generation == after.info()["generation"] == index.info()["generation"] + 1
        )
        assert after.report.images == len(after)
        assert ImageIndex.open(index.path).report is None
        index = after


def test_readers_that_open_and_search_while_a_writer_works(index, photos):
    """Each sees one generation: the rows it lists are the rows it searches and can read."""
    errors, opened, stop = [], [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                reader = ImageIndex.open(index.path)
                vectors = reader.embeddings[:]
                ids, _ = reader.search(QUERIES, 3)
                unit = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True)
                best = np.argsort(-unit @ vectors.T, axis=1)[:, :3]
                assert np.array_equal(reader.ids[best], ids)
                opened.append(reader.info()["generation"])
            except Exception as error:  # noqa: BLE001 -- shown by the assertion below
                errors.append(error)
                return

    thread = threading.Thread(target=read)
    thread.start()
    writer = ImageIndex.open(index.path)
    for number in range(6):
        photo(photos / f"0/new-{number}.png", 30 + number)
        writer = writer.add(ToyEncoder(), Corpus.open(photos))
        writer = writer.remove([int(writer.ids[0])]).compact()
    stop.set()
    thread.join()
    assert errors == []
    assert opened == sorted(opened)
    assert len(opened) > 1
