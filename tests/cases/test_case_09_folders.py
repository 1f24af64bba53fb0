"""A folder that cannot be listed is one failure, and what is around it is indexed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex
from indexing.corpus import folder


@pytest.fixture
def photos(tmp_path):
    for name in ("a.png", "locked/b.png", "sub/c.png", "sub/deep/d.png"):
        photo(tmp_path / "photos" / name, len(name))
    return tmp_path / "photos"


@pytest.fixture
def lock(monkeypatch):
    """Let the listing of a folder fail, as the system does it for ordinary people."""

    def refuse(place, code=errno.EACCES):
        scandir = os.scandir

        def scandir_or_fail(path):
            if Path(path) == place:
                raise OSError(code, os.strerror(code), str(path))
            return scandir(path)

        monkeypatch.setattr(folder.os, "scandir", scandir_or_fail)

    return refuse


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOENT])
def test_folder_that_cannot_be_listed_is_one_failure(photos, tmp_path, lock, code):
    lock(photos / "locked", code)
    index = ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "index")
    assert index.paths == ["a.png", "sub/c.png", "sub/deep/d.png"]
    (failure,) = index.failures
    assert failure.path == "locked/"
    assert os.strerror(code) in failure.message


def test_command_names_the_folder_and_ends_with_3(photos, tmp_path, lock, matvit, encoder):
    lock(photos / "locked")
    out = tmp_path / "index"
    code, shown, said = matvit("index", "build", photos, "--out", out, "--encoder", encoder)
    assert code == 3
    assert "3 images in" in shown
    assert "locked/" in said
    assert "Permission denied" in said


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM])
def test_machine_out_of_something_is_not_the_folder_s_fault(photos, lock, code):
    lock(photos / "locked", code)
    with pytest.raises(OSError, match=os.strerror(code)):
        Corpus.open(photos)


def test_folder_that_is_not_wanted_is_not_even_listed(photos, lock):
    lock(photos / "locked")
    corpus = Corpus.open(photos, exclude=["locked"])
    assert corpus.unlisted == ()
    assert corpus.names.to_pylist() == ["a.png", "sub/c.png", "sub/deep/d.png"]


def test_folder_that_opens_later_is_added_and_no_failure_any_more(
    photos, tmp_path, lock, monkeypatch
):
    lock(photos / "locked")
    index = ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "index")
    index = index.add(ToyEncoder(), Corpus.open(photos))
    assert (index.report.failed, len(index.failures)) == (1, 1)
    monkeypatch.undo()
    index = index.add(ToyEncoder(), Corpus.open(photos))
    assert (index.report.added, index.report.failed, index.failures) == (1, 0, [])
    assert "locked/b.png" in index.paths


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_folder_without_permission_is_one_failure(photos, tmp_path):
    (photos / "locked").chmod(0)
    try:
        index = ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "index")
        assert [failure.path for failure in index.failures] == ["locked/"]
    finally:
        (photos / "locked").chmod(0o700)
