"""Listing folders: the order of Python's own sorting, whatever the system's."""

from __future__ import annotations

import os

import pytest

from indexing.corpus import folder
from indexing.corpus.source import ImageSet

AWKWARD = [
    "a.jpg",
    "a/b.jpg",
    "a-b/c.jpg",
    "a b.jpg",
    "a/b/c.jpg",
    "é.jpg",
    "Z.jpg",
    "z/\U0001f600.png",
]


@pytest.mark.parametrize("at_a_time", [1, 3, 1000])
def test_names_are_sorted_as_one_list_with_their_classes(tmp_path, monkeypatch, at_a_time):
    monkeypatch.setattr(folder, "_NAMES_AT_A_TIME", at_a_time)
    for name in AWKWARD:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    images = ImageSet.from_folder(tmp_path)
    names = sorted(AWKWARD)
    assert images.names.to_pylist() == [images.name(i) for i in range(len(images))] == names
    assert [images.read(i).decode() for i in range(len(images))] == names
    classes = [name.split("/")[0] if "/" in name else None for name in names]
    assert images.class_names == ["a", "a-b", "z"]
    assert [None if i < 0 else images.class_names[i] for i in images.labels] == classes


def test_folder_named_like_an_image_is_a_folder(tmp_path):
    (tmp_path / "album.jpg").mkdir()
    (tmp_path / "album.jpg/1.png").write_bytes(b"x")
    images = ImageSet.open(tmp_path)
    assert (images.names.to_pylist(), images.class_names) == (["album.jpg/1.png"], ["album.jpg"])


def test_broken_links_are_listed_and_cannot_be_read(tmp_path):
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    images = ImageSet.open(tmp_path)
    assert images.names.to_pylist() == ["gone.jpg", "self.jpg"]
    gone, itself = images.read_range(0, 2)
    assert isinstance(gone, FileNotFoundError)
    assert isinstance(itself, OSError)


def test_of_two_links_to_one_folder_the_first_by_name_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/1.jpg").write_bytes(b"x")
    (tmp_path / "photos").mkdir()
    for name in ("c", "a", "b"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "real")
    assert ImageSet.open(tmp_path / "photos").names.to_pylist() == ["a/1.jpg"]


def test_names_that_are_not_utf8_are_told_apart_by_what_the_system_calls_them(tmp_path):
    names = (b"\xe9.jpg", b"\xe8.jpg", b"\xff/1.jpg")
    try:
        for number, name in enumerate(names):
            path = tmp_path / os.fsdecode(name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(str(number))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    images = ImageSet.open(tmp_path)
    assert images.names.to_pylist() == ["\ufffd.jpg", "\ufffd.jpg", "\ufffd/1.jpg"]
    assert list(images.read_range(0, 3)) == [b"1", b"0", b"2"]
    assert images.class_names == ["\ufffd"]


def test_folder_that_cannot_be_listed_is_an_error(photo_folder, monkeypatch):
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("bread"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", refused)
    with pytest.raises(PermissionError, match="bread"):
        ImageSet.open(photo_folder)
