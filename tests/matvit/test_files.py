"""Reading what somebody else put there: nothing that waits, nothing that is no file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexing.corpus import Corpus
from matvit import files
from matvit.files import read_file, read_part
from matvit.preprocess import Preprocess


def test_whole_files_and_parts_are_read_with_their_time(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(b"0123456789")
    mtime_ns = path.stat().st_mtime_ns
    assert read_file(path) == read_file(os.fsencode(path)) == (b"0123456789", mtime_ns)
    assert read_part(path, 3, 4, mtime_ns) == (b"3456", mtime_ns)
    with pytest.raises(OSError, match="the file ends after 3 of 4 bytes"):
        read_part(path, 7, 4)
    with pytest.raises(OSError, match="has changed since it was listed"):
        read_part(path, 3, 4, mtime_ns - 1)


def test_file_over_the_limit_is_refused_unread(tmp_path, monkeypatch):
    with (tmp_path / "huge.tif").open("wb") as stream:
        stream.truncate(files.MAX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(OSError, match="1,073,741,825 bytes, more than the limit of 1,073,741,824"):
        read_file(tmp_path / "huge.tif")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_fifos_sockets_and_devices_are_failures_and_not_waited_for(photo_folder):
    os.mkfifo(photo_folder / "a.jpg")
    (photo_folder / "b.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(photo_folder)  # the path of a socket must be short
        server.bind("c.jpg")
        os.chdir(here)
    corpus = Corpus.open(photo_folder)
    (batch,) = corpus.decode(Preprocess(img_size=8))
    assert len(batch) == 12
    assert [(failure.path, failure.message) for failure in batch.failures] == [
        ("a.jpg", "not a file but a FIFO"),
        ("b.jpg", "not a file but a device"),
        ("c.jpg", "not a file but a socket"),
    ]
    with pytest.raises(ValueError, match="not a readable image: not a file but a FIFO"):
        Preprocess(img_size=8).decode(photo_folder / "a.jpg")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_file_that_cannot_be_read_is_a_failure(photo_folder):
    (photo_folder / "a.jpg").symlink_to("/proc/self/mem")
    (batch,) = Corpus.open(photo_folder).decode(Preprocess(img_size=8))
    assert len(batch) == 12
    assert batch.failures[0].error == "OSError"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may read everything")
def test_file_that_may_not_be_read_is_a_failure(photo_folder):
    (photo_folder / "a.jpg").touch(mode=0)
    (batch,) = Corpus.open(photo_folder).decode(Preprocess(img_size=8))
    assert batch.failures[0].error == "PermissionError"


def test_ending_of_a_name_says_nothing_about_the_format(tmp_path):
    red = Image.new("RGB", (9, 9), "red")
    for format in ("PNG", "BMP", "GIF", "WEBP", "TIFF"):  # noqa: A001 -- Pillow's word
        red.save(tmp_path / f"{format}.jpg", format)
    (batch,) = Corpus.open(tmp_path).decode(Preprocess(img_size=8))
    assert len(batch) == 5
    assert np.abs(batch.pixels.astype(int) - (255, 0, 0)).max() <= 2  # WebP loses a little
