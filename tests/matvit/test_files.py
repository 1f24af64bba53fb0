"""Reading what somebody else put there: nothing that waits, nothing that is no file."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from msgspec import Meta, Struct
from PIL import Image

from indexing.corpus.corpus import Corpus
from matvit import files
from matvit.files import read_file, read_json, read_part
from matvit.preprocess import Preprocess
from matvit.writing import naming


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


class Point(Struct, forbid_unknown_fields=True):
    """What the JSON of these tests describes."""

    format_version: Literal[1]
    x: Annotated[int, Meta(ge=0, le=9)]
    y: float = 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 1, "x": 1, "z": 2}', "is not a point: .* unknown field `z`"),
        ('{"format_version": 1}', "is not a point: .* required field `x`"),
        ('{"format_version": 1, "x": true}', "Expected `int`, got `bool` - at `.*x`"),
        ('{"format_version": 1, "x": "1"}', "Expected `int`, got `str`"),
        ('{"format_version": 1, "x": 1.0}', "Expected `int`, got `float`"),
        ('{"format_version": 1, "x": 10}', "Expected `int` <= 9"),
        ('{"format_version": 1, "x": 123456789012345678901234567890}', "Expected `int` <= 9"),
        ('{"format_version": 1, "x": 1, "y": NaN}', "NaN is not a finite number"),
        ('{"format_version": 1, "x": 1, "y": -Infinity}', "-Infinity is not a finite number"),
        ('{"format_version": 1, "x": 1, "y": 1e999}', "1e999 is not a finite number"),
        ('{"format_version": 1, "x": 1, "x": 1}', "the key 'x' comes twice"),
        ('{"format_version": 1, "x": 1} {}', "is not a point: Extra data"),
        ('{"format_version": 1, "x": 1', "is not a point: Expecting ',' delimiter"),
        ('{"format_version": 1, "x": ' + "1" * 5000 + "}", "is not a point: Exceeds the limit"),
        ("", "is not a point: Expecting value"),
        ("[]", "is not a point: Expected `object`, got `array`"),
        ("[" * 1_000_000, "is not a point: "),
        ('{"format_version": 1, "y": ' + "[" * 1_000_000, "is not a point: "),
        ('{"format_version": 1, "x": 1, "z": ' + "[" * 1_000_000, "is not a point: "),
        ('{"format_version": 2, "z": 1}', "has format version 2, this program reads version 1"),
        ('{"format_version": "1", "x": 1}', "is not a point: Expected `int`, got `str`"),
        ('{"x": 1}', "is not a point: .* required field `format_version`"),
    ],
)
def test_json_of_any_other_shape_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "point.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as refusal:
        read_json(path, Point, "a point", version=1)
    assert str(refusal.value).startswith(str(path))
    assert len(str(refusal.value).splitlines()) == 1


def test_json_is_read_as_what_it_describes(tmp_path):
    path = tmp_path / "point.json"
    path.write_text('{"format_version": 1, "x": 3, "y": 0.1}')
    assert read_json(path, Point, "a point", version=1) == Point(format_version=1, x=3, y=0.1)
    path.write_text(json.dumps({"caf\udce9": "caf\udce9"}))  # a name that is no UTF-8
    assert read_json(path, dict[str, str], "names") == {"caf\udce9": "caf\udce9"}
    path.write_bytes(b'{"x": "\xff"}')
    with pytest.raises(ValueError, match="is not a point: "):
        read_json(path, Point, "a point")


def test_json_that_is_no_small_file_is_refused_unread(tmp_path):
    path = tmp_path / "point.json"
    with pytest.raises(FileNotFoundError):
        read_json(path, Point, "a point")
    path.mkdir()
    with pytest.raises(ValueError, match="cannot read .*point.json: not a file but a directory"):
        read_json(path, Point, "a point")
    path = tmp_path / "large.json"
    path.write_text(" " * 100)
    with pytest.raises(ValueError, match="100 bytes, more than the limit of 99"):
        read_json(path, Point, "a point", max_bytes=99)


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


def test_an_error_that_names_no_file_is_given_one(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    named = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "another")
    wordy = OSError("encoder error -2 when writing image file")
    for error, name in ((full, str(tmp_path)), (named, "another"), (wordy, None)):
        with pytest.raises(OSError, match="No space|encoder") as raised, naming(tmp_path):
            raise error
        assert raised.value.filename == name
