"""Parquet files in the layout of the Hugging Face `datasets` library, and what is odd in them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexing.corpus.corpus import Corpus


def write_parquet(path: Path, rows: int, *, first: int = 0, named: bool = True, label=None) -> None:
    """A file in the Hugging Face layout, two rows to a row group."""
    images = [
        {"bytes": f"image {first + i}".encode(), "path": f"p/{first + i}.jpg" if named else None}
        for i in range(rows)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(images, kind)}
    if label is not None:
        columns["label"] = pa.array(label)
    table = pa.table(columns)
    features = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=2)


def test_parquet_files_are_read_as_one_list(tmp_path):
    write_parquet(tmp_path / "b.parquet", 3, first=5, label=[1, 0, 1])
    write_parquet(tmp_path / "a.parquet", 5, label=[0, 0, 1, 1, 0])
    images = Corpus.open(tmp_path)
    expected = [f"image {i}".encode() for i in range(8)]
    assert [images.read(i) for i in range(8)] == expected
    assert [images.name(i) for i in (0, 7)] == ["p/0.jpg", "p/7.jpg"]
    assert images.labels.tolist() == [0, 0, 1, 1, 0, 1, 0, 1]
    assert images.class_names == ["cat", "dog"]
    assert images.source.stat(6) == (None, (tmp_path / "b.parquet").stat().st_mtime_ns)
    with pytest.raises(IndexError, match="image 8 of 8"):
        images.source.fetch(8)


def test_parquet_rows_without_a_path_are_named_by_file_and_row(tmp_path):
    write_parquet(tmp_path / "a.parquet", 3, named=False)
    write_parquet(tmp_path / "b.parquet", 5, named=False)
    images = Corpus.open(tmp_path)
    assert images.name(2) == "a.parquet#2"
    assert images.name(7) == "b.parquet#4"
    assert images.labels is None


def test_one_file_or_a_pattern_of_files(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", 2)
    write_parquet(tmp_path / "train-1.parquet", 2)
    write_parquet(tmp_path / "val-0.parquet", 3)
    assert len(Corpus.open(tmp_path / "val-0.parquet")) == 3
    assert len(Corpus.open(tmp_path / "train-*.parquet")) == 4
    with pytest.raises(FileNotFoundError, match="test-"):
        Corpus.open(tmp_path / "test-*.parquet")


def test_parquet_labels_may_be_words_or_missing(tmp_path):
    write_parquet(tmp_path / "w.parquet", 3, label=["dog", None, "ant"])
    images = Corpus.open(tmp_path)
    assert images.class_names == ["ant", "dog"]
    assert images.labels.tolist() == [1, -1, 0]


def test_labels_of_different_types_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", 2, label=["dog", "ant"])
    write_parquet(tmp_path / "b.parquet", 2, label=[0, 1])
    with pytest.raises(ValueError, match="labels in .* are of types int64 and string; make them"):
        Corpus.open(tmp_path)


def test_images_may_be_a_plain_binary_column(tmp_path):
    pq.write_table(pa.table({"image": pa.array([b"a", b"b"])}), tmp_path / "x.parquet")
    images = Corpus.open(tmp_path)
    assert images.read(1) == b"b"
    assert images.name(1) == "x.parquet#1"


def test_what_cannot_be_opened_says_what_was_wanted(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or file: .*gone"):
        Corpus.open(tmp_path / "gone")
    with pytest.raises(ValueError, match="no images in"):
        Corpus.open(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.txt is a file; expected a folder"):
        Corpus.open(tmp_path / "notes.txt")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"cannot read .*bad\.parquet"):
        Corpus.open(tmp_path / "bad.parquet")
    pq.write_table(pa.table({"photo": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"no column 'image' \(found \['photo'\]\)"):
        Corpus.open(tmp_path / "other.parquet")
    pq.write_table(pa.table({"image": ["/etc/passwd"]}), tmp_path / "path.parquet")
    with pytest.raises(ValueError, match="has images of type string; expected the Hugging Face"):
        Corpus.open(tmp_path / "path.parquet")
    write_parquet(tmp_path / "list.parquet", 1, label=[[1]])
    with pytest.raises(ValueError, match="labels of type list"):
        Corpus.open(tmp_path / "list.parquet")
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds image files and Parquet files"):
        Corpus.open(tmp_path)
    write_parquet(tmp_path / "high.parquet", 2, label=[0, 7])
    with pytest.raises(ValueError, match="labels outside its 2 class names"):
        Corpus.open(tmp_path / "high.parquet")


def test_names_at_once_are_those_one_by_one(tmp_path):
    write_parquet(tmp_path / "a.parquet", 3, named=False)
    write_parquet(tmp_path / "b.parquet", 3)
    images = Corpus.open(tmp_path)
    names = [images.name(i) for i in range(6)]
    assert images.names.to_pylist() == names
    assert names[2:4] == ["a.parquet#2", "p/0.jpg"]
    for file, expected in (("a", names[:3]), ("b", names[3:])):
        assert Corpus.open(tmp_path / f"{file}.parquet").names.to_pylist() == expected


def test_parquet_with_the_bytes_alone_names_images_by_row(tmp_path):
    pq.write_table(pa.table({"image": [{"bytes": b"a"}, {"bytes": b"b"}]}), tmp_path / "x.parquet")
    assert Corpus.open(tmp_path).names.to_pylist() == ["x.parquet#0", "x.parquet#1"]


def test_label_that_numbers_too_many_classes_is_refused(tmp_path):
    table = pa.table({"image": pa.array([b"a"]), "label": pa.array([10**12])})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="a label of 1,000,000,000,000; labels number the classes"):
        Corpus.open(tmp_path)


def test_row_groups_are_kept_up_to_so_many_bytes(tmp_path, monkeypatch):
    write_parquet(tmp_path / "x.parquet", 40)
    images = Corpus.open(tmp_path)
    loaded = []
    files = images.source
    load = files._load_group
    monkeypatch.setattr(files, "_load_group", lambda group: (loaded.append(group), load(group))[1])
    assert [images.read(i) for i in range(40)] == [f"image {i}".encode() for i in range(40)]
    assert loaded == list(range(20))
    assert [images.read(i) for i in (0, 39)] == [b"image 0", b"image 39"]
    assert loaded == list(range(20))
    files._cached.clear()
    loaded.clear()
    monkeypatch.setattr("indexing.corpus.parquet._CACHED_BYTES", 1)
    assert [images.read(i) for i in (0, 1, 39, 0)] == [
        b"image 0", b"image 1", b"image 39", b"image 0"
    ]  # fmt: skip
    assert loaded == [0, 19, 0]  # one is kept, however large
