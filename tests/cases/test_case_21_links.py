"""A writer follows no link inside an index, and nothing but a file is waited for or read.

Mutants these must catch: a temporary name that can be guessed; a lock, a manifest or a data file
opened through a link; files below a linked folder removed; a FIFO waited for, a device read.
"""

from __future__ import annotations

import os
import shutil

import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex, verify_index
from indexing.store.files import write_atomically
from retrieval.tuning.journal import read_checked, write_checked

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="links need a privilege, and there is no FIFO"),
    pytest.mark.timeout(60),
]


def link_to_a_device(path):
    path.symlink_to("/dev/zero")


@pytest.fixture
def photos(tmp_path):
    for number in range(6):
        photo(tmp_path / f"photos/{number}.png", number)
    (tmp_path / "photos/bad.png").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def good(photos, tmp_path):
    index = ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "good")
    return index.remove([1]).path


@pytest.fixture
def evil(good, tmp_path):
    return shutil.copytree(good, tmp_path / "evil")


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_no_writer_touches(evil, photos, kept):
    """Every writer refuses the index, and what is kept stays as it is."""
    before, opened = content(kept), ImageIndex.open(evil)
    photo(photos / "new.png", 20)
    for write in (
        lambda: opened.remove([3]),
        lambda: opened.compact(),
        lambda: opened.add(ToyEncoder(), Corpus.open(photos)),
    ):
        with pytest.raises((ValueError, OSError), match="is a link|put the"):
            write()
        assert content(kept) == before


@pytest.mark.parametrize(
    "name",
    ["LOCK", "manifest.json", "manifest.json.prev", "manifest.json.prev.tmp", "tombstones_g7.npy"],
)
def test_link_to_a_file_elsewhere_is_refused_and_the_file_is_as_it_was(
    evil, photos, tmp_path, name
):
    (tmp_path / "kept").mkdir()
    victim = tmp_path / "kept/victim"
    victim.write_bytes((evil / name).read_bytes() if (evil / name).exists() else b"precious")
    (evil / name).unlink(missing_ok=True)
    (evil / name).symlink_to(victim)
    assert_no_writer_touches(evil, photos, tmp_path / "kept")


@pytest.mark.parametrize("folder", ["img_emb", "metadata", "failures", "index"])
def test_linked_folder_of_another_index_loses_nothing(evil, good, photos, folder):
    shutil.rmtree(evil / folder)
    (evil / folder).symlink_to(good / folder)
    assert_no_writer_touches(evil, photos, good)
    assert verify_index(good).ok


def test_index_below_a_link_and_files_that_are_links_can_be_read(evil, good, tmp_path):
    shutil.rmtree(evil / "img_emb")
    (evil / "img_emb").symlink_to(good / "img_emb")
    (tmp_path / "here").symlink_to(evil)
    assert len(ImageIndex.open(tmp_path / "here")) == 5
    (tmp_path / "there").symlink_to(good)
    assert len(ImageIndex.open(tmp_path / "there").remove([3])) == 4


@pytest.mark.parametrize(
    "name", ["LOCK", "manifest.json", "img_emb/img_emb_000000.npy", "index/knn_g1.faiss"]
)
@pytest.mark.parametrize("make", [os.mkfifo, link_to_a_device])
def test_fifo_or_device_in_place_of_a_file_is_one_error(evil, name, make):
    opened = ImageIndex.open(evil)
    (evil / name).unlink()
    make(evil / name)
    for use in (lambda: ImageIndex.open(evil), lambda: opened.remove([3])):
        if name == "LOCK" and use.__code__.co_names[0] == "ImageIndex":
            continue  # readers need none
        with pytest.raises((ValueError, OSError), match="a FIFO|a device|a link"):
            use()


@pytest.mark.parametrize("make", [os.mkfifo, link_to_a_device])
def test_tuning_that_is_a_fifo_or_a_device_is_one_error(evil, make):
    make(evil / "tuning.json")
    with pytest.raises(ValueError, match="not a file but a"):
        read_checked(evil / "tuning.json")


def test_link_in_place_of_a_file_that_is_written_is_replaced(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "tuning.json").symlink_to(tmp_path / "victim")
    write_checked(tmp_path / "tuning.json", {"a": 1})
    assert (tmp_path / "victim").read_text() == "precious"
    assert read_checked(tmp_path / "tuning.json") == {"a": 1}


def test_nobody_can_guess_where_a_file_is_written_first(tmp_path):
    names = set()
    for _ in range(3):
        write_atomically(
            tmp_path / "file",
            lambda stream: names.update(path.name for path in tmp_path.glob("*.tmp")),
        )
    assert len(names) == 3
