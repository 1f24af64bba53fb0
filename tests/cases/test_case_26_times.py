"""Files of any time of change are images like others: one of the year 2300 stops nothing."""

from __future__ import annotations

import io
import os
import tarfile
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex
from matvit.files import modified_ns

YEAR = 365 * 24 * 3600 * 10**9
TIMES = {
    "2300": 330 * YEAR,
    "9999": 8029 * YEAR,
    "1900": -70 * YEAR,
    "1969": -1,
    "1601": -369 * YEAR,
    "1980": 10 * YEAR,
}


def set_time(path, mtime_ns):
    os.utime(path, ns=(0, mtime_ns))
    if path.stat().st_mtime_ns != mtime_ns:
        pytest.skip("this file system does not keep such times")


@pytest.mark.parametrize("year", TIMES)
def test_time_is_kept_in_64_bits_and_still_told_from_others(year):
    kept, other = (
        modified_ns(SimpleNamespace(st_mtime_ns=time)) for time in (TIMES[year], TIMES[year] + 1)
    )
    assert -(1 << 63) <= kept < 1 << 63
    assert kept == TIMES[year] or year in ("2300", "9999", "1601")
    assert kept != other


@pytest.mark.parametrize("year", TIMES)
def test_photo_of_another_time_is_indexed_known_again_and_noticed_when_it_changes(tmp_path, year):
    old, toy = photo(tmp_path / "photos/a.png", 1), ToyEncoder()
    photo(tmp_path / "photos/b.png", 2)
    set_time(old, TIMES[year])
    corpus = Corpus.open(tmp_path / "photos")
    index = ImageIndex.build(toy, corpus, tmp_path / "index")
    assert (index.paths, index.failures) == (["a.png", "b.png"], [])
    assert index.add(toy, corpus).report.unchanged == 2
    photo(old, 3)
    set_time(old, TIMES[year] + 10**9)
    assert index.add(toy, Corpus.open(tmp_path / "photos")).report.changed == 1
    bad = tmp_path / "photos/bad.png"
    bad.write_text("no image")
    set_time(bad, TIMES[year])
    for _ in range(2):
        index = ImageIndex.open(tmp_path / "index").add(toy, Corpus.open(tmp_path / "photos"))
        assert [failure.path for failure in index.failures] == ["bad.png"]


@pytest.mark.parametrize("year", ["2300", "1601"])
def test_archives_and_parquet_files_of_another_time_are_read(tmp_path, year):
    data = photo(tmp_path / "a.png", 1).read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size, member.mtime = len(data), TIMES[year] / 10**9
        archive.addfile(member, io.BytesIO(data))
    pq.write_table(pa.table({"image": pa.array([data])}), tmp_path / "a.parquet")
    for file in (tmp_path / "a.tar", tmp_path / "a.parquet"):
        set_time(file, TIMES[year])
        index = ImageIndex.build(ToyEncoder(), Corpus.open(file), tmp_path / f"{file.name}.index")
        assert (len(index), index.failures) == (1, [])
        assert index.add(ToyEncoder(), Corpus.open(file)).report.unchanged == 1
        assert Image.open(io.BytesIO(index.image_bytes(0))).size == (4, 4)


@pytest.mark.parametrize("mtime", [1e300, float("nan"), float("inf"), -1e18, 2.0**63])
def test_absurd_times_inside_an_archive_are_nobodys_business(tmp_path, mtime):
    data = photo(tmp_path / "a.png", 1).read_bytes()
    member = tarfile.TarInfo("a.png")
    member.size = len(data)
    member.pax_headers = {"mtime": repr(mtime), "atime": "never"}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(data))
    (batch,) = Corpus.open(tmp_path / "a.tar").decode(ToyEncoder.preprocess)
    assert (len(batch), batch.failures) == (1, [])
