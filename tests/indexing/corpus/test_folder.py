"""Listing folders: the order of Python's own sorting, whatever the system's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from indexing.corpus import folder, source
from indexing.corpus.corpus import Corpus
from matvit.preprocess import Preprocess

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
    monkeypatch.setattr(source, "_NAMES_AT_A_TIME", at_a_time)
    for name in AWKWARD:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    images = Corpus.from_folder(tmp_path)
    names = sorted(AWKWARD)
    assert images.names.to_pylist() == [images.name(i) for i in range(len(images))] == names
    assert [images.read(i).decode() for i in range(len(images))] == names
    classes = [name.split("/")[0] if "/" in name else None for name in names]
    assert images.class_names == ["a", "a-b", "z"]
    assert [None if i < 0 else images.class_names[i] for i in images.labels] == classes


def test_folder_named_like_an_image_is_a_folder(tmp_path):
    (tmp_path / "album.jpg").mkdir()
    (tmp_path / "album.jpg/1.png").write_bytes(b"x")
    images = Corpus.open(tmp_path)
    assert (images.names.to_pylist(), images.class_names) == (["album.jpg/1.png"], ["album.jpg"])


def test_broken_links_are_listed_and_cannot_be_read(tmp_path):
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    images = Corpus.open(tmp_path)
    assert images.names.to_pylist() == ["gone.jpg", "self.jpg"]
    with pytest.raises(FileNotFoundError):
        images.read(0)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        images.read(1)


def test_of_two_links_to_one_folder_the_first_by_name_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/1.jpg").write_bytes(b"x")
    (tmp_path / "photos").mkdir()
    for name in ("c", "a", "b"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "real")
    assert Corpus.open(tmp_path / "photos").names.to_pylist() == ["a/1.jpg"]


def test_names_that_are_not_utf8_are_told_apart_by_what_the_system_calls_them(tmp_path):
    names = (b"\xe9.jpg", b"\xe8.jpg", b"\xff/1.jpg")
    try:
        for number, name in enumerate(names):
            path = tmp_path / os.fsdecode(name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(str(number))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    images = Corpus.open(tmp_path)
    assert images.names.to_pylist() == ["\ufffd.jpg", "\ufffd.jpg", "\ufffd/1.jpg"]
    assert [images.read(i) for i in range(3)] == [b"1", b"0", b"2"]
    assert images.class_names == ["\ufffd"]


def test_folder_that_cannot_be_listed_is_an_error(photo_folder, monkeypatch):
    scandir = os.scandir

    def refused(path):
        if Path(path) == photo_folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", refused)
    with pytest.raises(PermissionError, match="photos"):
        Corpus.open(photo_folder)
    with pytest.raises(PermissionError, match="photos"):
        Corpus.from_folder(photo_folder)


def test_a_folder_is_read_in_the_order_of_its_names(photo_folder):
    images = Corpus.open(photo_folder)
    names = [images.name(i) for i in range(len(images))]
    assert names == sorted(
        p.relative_to(photo_folder).as_posix() for p in photo_folder.rglob("*.png")
    )
    assert images.read(3) == (photo_folder / names[3]).read_bytes()
    found = (photo_folder / names[0]).stat()
    assert images.source.stat(0) == (found.st_size, found.st_mtime_ns)
    assert images.source.fetch(0) == (images.read(0), found.st_mtime_ns)


def test_the_first_folder_is_the_class(photo_folder):
    (photo_folder / "loose.PNG").write_bytes(b"x")
    (photo_folder / "apple" / "deep").mkdir()
    (photo_folder / "apple" / "deep" / "z.jpeg").write_bytes(b"x")
    images = Corpus.open(photo_folder)
    assert images.class_names == ["apple", "bread", "cheese"]
    label = {images.name(i): int(images.labels[i]) for i in range(len(images))}
    assert label["apple/deep/z.jpeg"] == 0
    assert label["bread/01.png"] == 1
    assert label["loose.PNG"] == -1


def test_images_without_folders_have_no_labels(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    images = Corpus.open(tmp_path)
    assert images.labels is None
    assert images.class_names is None


def test_a_name_that_is_not_utf8_is_shown_as_well_as_can_be_and_read(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    try:
        path.write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    images = Corpus.open(tmp_path)
    assert images.name(0) == "caf\ufffd.jpg"
    assert images.read(0) == b"x"


def test_hidden_and_other_files_are_passed_over(tmp_path):
    for name in ("a.jpg", ".b.jpg", "notes.txt", ".trash/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    images = Corpus.open(tmp_path)
    assert [images.name(i) for i in range(len(images))] == ["a.jpg"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"x")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "cat" / "all").symlink_to(tmp_path / "photos")
    images = Corpus.open(tmp_path / "photos")
    assert [images.name(i) for i in range(len(images))] == ["dog/a.jpg"]


def test_a_file_that_vanished_comes_as_its_error(photo_folder):
    images = Corpus.open(photo_folder)
    (photo_folder / images.name(1)).unlink()
    (batch,) = images.decode(Preprocess(img_size=8))
    assert batch.rows.tolist() == [0, *range(2, 12)]
    assert [failure.error for failure in batch.failures] == ["FileNotFoundError"]


def test_labels_are_int64(photo_folder):
    assert Corpus.open(photo_folder).labels.dtype == np.int64
