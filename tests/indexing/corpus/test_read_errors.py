"""What cannot be read is one failure; a machine that is out of something stops the whole run."""

from __future__ import annotations

import errno
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, Decoders, ImageIndex
from indexing.corpus import folder, tar
from indexing.corpus.decoding import DecodePool
from matvit.preprocess import Preprocess

OF_THE_FILE = [errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ETIMEDOUT]
OF_THE_MACHINE = [errno.EMFILE, errno.ENFILE, errno.ENOMEM]


@pytest.fixture
def photos(tmp_path):
    for number in range(6):
        photo(tmp_path / f"photos/{number}.png", number)
    return tmp_path / "photos"


def failing(monkeypatch, error, name=b"3.png", module=folder):
    """Let the reading of one file raise an error."""
    read = module.read_file

    def read_or_fail(path):
        if os.fsencode(path).endswith(name):
            raise error
        return read(path)

    monkeypatch.setattr(module, "read_file", read_or_fail)


@pytest.mark.parametrize("code", OF_THE_FILE)
def test_read_error_of_one_file_is_one_failure(photos, tmp_path, monkeypatch, code):
    failing(monkeypatch, OSError(code, os.strerror(code), "3.png"))
    index = ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "index")
    assert index.paths == [f"{number}.png" for number in (0, 1, 2, 4, 5)]
    assert [failure.path for failure in index.failures] == ["3.png"]
    assert os.strerror(code) in index.failures[0].message


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("code", OF_THE_MACHINE)
def test_machine_out_of_something_stops_the_build_and_says_so(
    photos, tmp_path, monkeypatch, code, workers
):
    failing(monkeypatch, OSError(code, os.strerror(code), "3.png"))
    corpus = Corpus.open(photos)
    with pytest.raises(OSError, match=os.strerror(code)):
        ImageIndex.build(ToyEncoder(), corpus, tmp_path / "index", decoders=Decoders(workers))
    monkeypatch.undo()
    assert len(ImageIndex.build(ToyEncoder(), corpus, tmp_path / "index")) == 6


def test_memory_that_runs_out_while_decoding_is_no_damage_of_the_image(photos, monkeypatch):
    def full(self, data):
        raise MemoryError

    monkeypatch.setattr(DecodePool, "decode", full)
    with pytest.raises(MemoryError):
        list(Corpus.open(photos).decode(Preprocess(img_size=8)))


@pytest.mark.parametrize("code", OF_THE_MACHINE)
def test_parquet_file_that_cannot_be_opened_now_is_not_called_damaged(
    photos, tmp_path, monkeypatch, code
):
    pq.write_table(pa.table({"image": pa.array([b"x"])}), tmp_path / "a.parquet")
    corpus = Corpus.open(tmp_path / "a.parquet")

    def refuse(file):
        raise OSError(code, os.strerror(code), str(file))

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    for attempt in (
        lambda: list(corpus.decode(Preprocess(img_size=8))),
        lambda: Corpus.open(tmp_path / "a.parquet"),
    ):
        with pytest.raises(OSError, match=os.strerror(code)):
            attempt()


@pytest.mark.parametrize("code", [*OF_THE_MACHINE, errno.EIO, errno.EACCES])
def test_archive_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, code):
    (tmp_path / "a.tar").write_bytes(bytes(10240))

    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code), "a.tar")

    monkeypatch.setattr(tar.tarfile, "open", refuse)
    with pytest.raises(OSError, match=os.strerror(code)):
        Corpus.open(tmp_path / "a.tar")
