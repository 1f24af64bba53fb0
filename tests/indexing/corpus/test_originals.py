"""Original images: only what was indexed, from where the corpus was."""

from __future__ import annotations

import hashlib
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexing.corpus.originals import Originals
from indexing.corpus.selection import Selection


def digest(data):
    return hashlib.sha256(data).hexdigest()


def originals(root, kind="folder", **selected):
    return Originals(str(root), kind, Selection(**selected))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret.txt").write_bytes(b"secret")
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    (root / "a/1.png").write_bytes(b"one")
    return root


def test_image_of_a_folder_is_read_by_its_path(folder):
    assert originals(folder).read("a/1.png", 99, digest(b"one")) == b"one"


@pytest.mark.parametrize("path", ["../secret.txt", "a/../../secret.txt", "/etc/passwd", ".."])
def test_path_that_leaves_the_corpus_is_refused(folder, path):
    with pytest.raises(ValueError, match="which is outside its corpus"):
        originals(folder).read(path, 0, digest(b"secret"))


def test_file_that_was_never_indexed_is_not_handed_out(folder):
    with pytest.raises(ValueError, match="has changed since it was indexed; build the index again"):
        originals(folder.parent).read("secret.txt", 0, digest(b"a guess"))


def test_image_that_changed_is_refused(folder):
    (folder / "a/1.png").write_bytes(b"two")
    with pytest.raises(ValueError, match=r"a/1.png in .* has changed since it was indexed"):
        originals(folder).read("a/1.png", 0, digest(b"one"))


@pytest.mark.parametrize("path", ["a/2.png", "a", "."])
def test_image_that_is_gone_is_named(folder, path):
    with pytest.raises(FileNotFoundError, match="is no longer in .*; put it back or build"):
        originals(folder).read(path, 0, digest(b"one"))


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "images.parquet"
    images = [{"bytes": b"one", "path": "same.png"}, {"bytes": b"two", "path": "same.png"}]
    pq.write_table(pa.table({"image": images}), path)
    return path


def test_image_of_a_parquet_file_is_read_by_its_position(parquet):
    reader = originals(parquet, "parquet", rules=1)
    assert reader.read("same.png", 0, digest(b"one")) == b"one"
    assert reader.read("same.png", 1, digest(b"two")) == b"two"
    reader = originals(parquet, "parquet")
    assert reader.read("images.parquet#1", 1, digest(b"two")) == b"two"


def test_row_that_holds_another_image_now_is_refused(parquet):
    with pytest.raises(ValueError, match=r"same.png in .* has changed"):
        originals(parquet, "parquet", rules=1).read("same.png", 1, digest(b"one"))


def test_row_that_is_gone_is_named(parquet):
    with pytest.raises(FileNotFoundError, match=r"other.png is no longer in"):
        originals(parquet, "parquet").read("other.png", 2, digest(b"one"))


def test_row_that_moved_is_found_by_its_name(tmp_path):
    images = [{"bytes": name.encode(), "path": name} for name in ("new", "a", "b")]
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet")
    reader = originals(tmp_path / "images.parquet", "parquet")
    assert reader.read("a", 0, digest(b"a")) == b"a"
    assert reader.read("b", 1, digest(b"b")) == b"b"


def test_parquet_file_that_is_gone_is_named(parquet):
    parquet.unlink()
    with pytest.raises(FileNotFoundError, match=r"images.parquet"):
        originals(parquet, "parquet").read("same.png", 0, digest(b"one"))


def test_image_of_a_tar_archive_is_read_by_its_archive_and_name(tmp_path):
    for number, data in enumerate((b"one", b"two")):
        (tmp_path / "same.png").write_bytes(data)
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            archive.add(tmp_path / "same.png", "same.png")
    reader = originals(tmp_path / "*.tar", "tar")
    assert reader.read("1.tar/same.png", 1, digest(b"two")) == b"two"
    assert reader.read("1.tar/same.png", 0, digest(b"two")) == b"two"  # it has moved
    with pytest.raises(ValueError, match=r"0.tar/same.png in .* has changed"):
        reader.read("0.tar/same.png", 0, digest(b"two"))
    with pytest.raises(FileNotFoundError, match=r"2.tar/same.png is no longer in"):
        reader.read("2.tar/same.png", 2, digest(b"one"))
