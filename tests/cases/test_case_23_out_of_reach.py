"""An image that is out of reach during an addition stays in the index, with its id."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex
from indexing.corpus import folder

CODES = [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOENT, errno.ETIMEDOUT]
NAMES = ["a/0.png", "a/1.png", "b/2.png", "b/3.png"]


@pytest.fixture
def photos(tmp_path):
    for seed, name in enumerate(NAMES):
        photo(tmp_path / "photos" / name, seed)
    return tmp_path / "photos"


@pytest.fixture
def index(photos, tmp_path):
    return ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "index")


@pytest.fixture
def fail(monkeypatch):
    """Let calls of the system fail for all that is called like this."""

    def patch(name, code, *calls):
        for call in calls:
            module = folder if call == "read_file" else folder.os
            monkeypatch.setattr(module, call, failing(getattr(module, call), name, code))

    return patch


def failing(call, name, code):
    def call_or_fail(path, *arguments, **options):
        if name in os.fsdecode(path):
            raise OSError(code, os.strerror(code), os.fsdecode(path))
        return call(path, *arguments, **options)

    return call_or_fail


def add(index, photos, **options):
    return index.add(ToyEncoder(), Corpus.open(photos), **options)


def ids(index):
    return dict(zip(index.paths, index.ids.tolist(), strict=True))


@pytest.mark.parametrize("remove_missing", [False, True])
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", ["stat", "read_file", "scandir"])
def test_images_stay_with_their_ids_while_they_are_out_of_reach(
    photos, index, fail, monkeypatch, call, code, remove_missing
):
    before = ids(index)
    if call == "read_file":
        for name in NAMES:
            os.utime(photos / name, ns=(1, 1))  # else nobody would read them
    fail("photos/b" if call == "scandir" else ".png", code, call)
    for _ in range(2):
        index = add(index, photos, remove_missing=remove_missing)
        assert ids(index) == before
        assert index.report.removed == 0
        reported = ["b/"] if call == "scandir" else NAMES
        assert [failure.path for failure in index.failures] == reported
        assert index.report.failed == len(reported)
    monkeypatch.undo()
    index = add(index, photos, remove_missing=remove_missing)
    assert ids(index) == before
    assert (index.report.failed, index.failures) == (0, [])


def test_nobody_else_gets_the_id_of_an_image_out_of_reach(photos, index, fail, monkeypatch):
    before = ids(index)
    (photos / "c").mkdir()
    (photos / "c/copy.png").write_bytes((photos / "b/2.png").read_bytes())
    for call, name in (("stat", "b/2.png"), ("stat", "photos/b"), ("scandir", "photos/b")):
        fail(name, errno.EIO, call)
        index = add(index, photos)
        monkeypatch.undo()
        now = ids(index)
        assert len(set(now.values())) == len(now) == 5
        assert {name: now[name] for name in NAMES} == before


def test_file_that_is_no_image_any_more_is_still_dropped(photos, index):
    (photos / "b/2.png").write_bytes(b"no image")
    index = add(index, photos)
    assert index.paths == ["a/0.png", "a/1.png", "b/3.png"]
    assert [failure.path for failure in index.failures] == ["b/2.png"]


def test_file_that_may_not_be_read_is_reported_though_it_has_not_changed(
    photos, index, monkeypatch
):
    monkeypatch.setattr(folder.os, "access", lambda path, mode: b"b/2" not in path)
    index = add(index, photos)
    assert index.paths == NAMES
    assert [failure.path for failure in index.failures] == ["b/2.png"]
    assert "Permission denied" in index.failures[0].message


def test_root_that_is_out_of_reach_changes_nothing(photos, index, fail):
    fail("photos", errno.ESTALE, "scandir")
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        add(index, photos, remove_missing=True)
    assert ImageIndex.open(index.path).paths == NAMES


def test_folder_of_which_nobody_knows_what_it_is_counts_as_one_out_of_reach(
    photos, index, monkeypatch
):
    class Entry:
        def __init__(self, entry):
            self.name, self._entry = entry.name, entry

        def is_dir(self):
            if self.name == "b":
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), self.name)
            return self._entry.is_dir()

    scandir = os.scandir

    class Entries(list):
        def __enter__(self):
            return self

        def __exit__(self, *details):
            return None

    def odd_scandir(path):
        if Path(path).name == "b":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return Entries(map(Entry, scandir(path)))

    monkeypatch.setattr(folder.os, "scandir", odd_scandir)
    index = add(index, photos, remove_missing=True)
    assert index.paths == NAMES
    assert [failure.path for failure in index.failures] == ["b/"]
