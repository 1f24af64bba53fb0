"""Additions from Parquet files and tar archives, by processes, and beside another writer."""

from __future__ import annotations

import os
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy import ToyEncoder, photo
from updating import counts

from indexing import Corpus, Decoders, ImageIndex, write
from indexing.corpus import decode_process
from indexing.store.folder import writer_lock


def test_parquet_rows_that_moved_keep_their_ids(photos, tmp_path, embedded):
    def write(names):
        images = [{"bytes": (photos / name).read_bytes(), "path": name} for name in names]
        pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")

    write(["apple/0.png", "cheese/1.png"])
    corpus = Corpus.open(tmp_path / "x.parquet")
    index = ImageIndex.build(ToyEncoder(), corpus, tmp_path / "x.index")
    write(["cheese/3.png", "apple/0.png", "cheese/1.png"])
    os.utime(tmp_path / "x.parquet", ns=(1, 1))
    index = index.add(ToyEncoder(), Corpus.open(tmp_path / "x.parquet"))
    assert counts(index.report) == {"added": 1, "unchanged": 2}
    assert embedded == [2, 1]
    assert index.paths == ["apple/0.png", "cheese/1.png", "cheese/3.png"]
    for number, path in enumerate(index.paths):
        assert index.image_bytes(number) == (photos / path).read_bytes()


def test_names_that_are_shared_cannot_be_told_apart(photos, tmp_path):
    corpus = Corpus.open(photos)
    index = ImageIndex.build(ToyEncoder(), corpus, tmp_path / "x.index")
    with pytest.raises(ValueError, match=r"several images in .* are called 'apple/0.png'"):
        index.add(ToyEncoder(), corpus.subset([0, 0]))


def test_rows_that_share_a_path_are_called_by_file_and_row_and_can_be_updated(photos, tmp_path):
    def write(*paths):
        images = [{"bytes": (photos / path).read_bytes(), "path": "image.jpg"} for path in paths]
        pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
        os.utime(tmp_path / "x.parquet", ns=(1, len(paths)))
        return Corpus.open(tmp_path / "x.parquet")

    index = ImageIndex.build(
        ToyEncoder(), write("apple/0.png", "cheese/1.png"), tmp_path / "x.index"
    )
    assert index.paths == ["x.parquet#0", "x.parquet#1"]
    index = index.add(ToyEncoder(), write("apple/0.png", "cheese/1.png", "cheese/3.png"))
    assert counts(index.report) == {"added": 1, "unchanged": 2}
    assert index.image_bytes(2) == (photos / "cheese/3.png").read_bytes()
    index = index.add(ToyEncoder(), write("apple/0.png"), remove_missing=True)
    assert index.paths == ["x.parquet#0"]  # still by row, though paths would do now
    assert counts(index.report) == {"removed": 2, "unchanged": 1}


def test_second_writer_is_refused_whatever_it_wants(index, photos, add_all):
    message = f"is being written by process {os.getpid()} on "
    with writer_lock(index.path):
        for write in (add_all, lambda: index.remove([1]), index.compact):
            with pytest.raises(BlockingIOError, match=message):
                write()
    assert len(ImageIndex.open(index.path)) == 6


def archive(path, *files):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, file.name)


def test_archives_may_hold_the_same_names_and_a_new_one_is_all_that_is_embedded(
    photos, tmp_path, embedded
):
    root, first, second = tmp_path / "tars", photos / "apple/0.png", photos / "cheese/1.png"
    archive(root / "b.tar", first)
    index = ImageIndex.build(ToyEncoder(), Corpus.open(root), tmp_path / "tars.index")
    shutil.copyfile(second, tmp_path / "0.png")
    archive(root / "a.tar", tmp_path / "0.png", photos / "apple/bad.png")
    embedded.clear()
    index = index.add(ToyEncoder(), Corpus.open(root))
    assert counts(index.report) == {"added": 1, "unchanged": 1, "failed": 1}
    assert sum(embedded) == 1
    assert dict(zip(index.ids, index.paths, strict=True)) == {0: "b.tar/0.png", 1: "a.tar/0.png"}
    assert index.image_bytes(0) == first.read_bytes()
    assert index.image_bytes(1) == second.read_bytes()
    assert [failure.path for failure in index.failures] == ["a.tar/bad.png"]
    index = index.add(ToyEncoder(), Corpus.open(root))
    assert counts(index.report) == {"unchanged": 2}


def test_name_that_is_twice_in_one_archive_is_told_apart(photos, tmp_path):
    archive(tmp_path / "a.tar", photos / "apple/0.png", photos / "apple/0.png")
    corpus = Corpus.open(tmp_path / "a.tar")
    index = ImageIndex.build(ToyEncoder(), corpus, tmp_path / "twice.index")
    assert index.paths == ["a.tar/0.png", "a.tar/0.png#2"]
    assert counts(index.add(ToyEncoder(), corpus).report) == {"unchanged": 2}


def test_processes_serve_all_shards_and_change_nothing(photos, index, tmp_path, monkeypatch):
    started = []

    class Counted(decode_process._Process):
        def __init__(self, preprocess):
            started.append(self)
            super().__init__(preprocess)

    monkeypatch.setattr(decode_process, "_Process", Counted)
    monkeypatch.setattr(write, "SHARD_SIZE", 2)
    options = {"decoders": Decoders(workers=1, processes=True)}
    same = ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "same", **options)
    assert len(started) == 1
    for number in (6, 7, 8):
        photo(photos / f"cheese/{number}.png", number)
    started.clear()
    same = same.add(ToyEncoder(), Corpus.open(photos), **options)
    assert same.report.added == 3
    assert len(started) == 1
    index = index.add(ToyEncoder(), Corpus.open(photos), decoders=Decoders(workers=0))
    assert same.metadata.equals(index.metadata)
    assert same.failures == index.failures
    np.testing.assert_array_equal(same.embeddings[:], index.embeddings[:])
