"""What is not taken of a place is counted and named by kind."""

from __future__ import annotations

import json

import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex
from matvit import readable_suffixes

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


@pytest.fixture
def photos(tmp_path):
    for number in range(2):
        photo(tmp_path / f"photos/{number}.png", number)
    for name in ("a.ARW", "b.arw", "c.jxl", "d.MP4", "sub.d/e.mov", "notes.txt", "README"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(HEIC)
    return tmp_path / "photos"


def test_formats_that_cannot_be_read_are_counted_by_kind(photos):
    left = Corpus.open(photos).left_out
    assert left.formats == {".arw": 2, ".jxl": 1, ".mov": 1, ".mp4": 1}
    assert left.others == {".txt": 1, "no ending": 1}
    assert left.in_words()[0] == (
        "5 files of formats that cannot be read left out: .arw 2, .jxl 1, .mov 1, .mp4 1"
    )


@pytest.mark.skipif(".heic" in readable_suffixes(), reason="HEIC can be read here")
def test_heic_is_named_by_the_command_and_kept_in_the_index(tmp_path, matvit, encoder):
    for number in range(2):
        photo(tmp_path / f"photos/{number}.png", number)
    for number in range(3):
        (tmp_path / f"photos/IMG_{number}.HEIC").write_bytes(HEIC)
    out, by = tmp_path / "index", ("--encoder", encoder)
    said = "3 files of formats that cannot be read left out: .heic 3"
    code, shown, told = matvit("index", "build", tmp_path / "photos", "--out", out, *by)
    assert (code, "2 images in" in shown, said in told) == (0, True, True)
    info = json.loads(matvit("index", "info", out, "--json")[1])
    assert info["left_out"]["formats"] == {".heic": 3}
    assert said in matvit("index", "info", out)[1]
    assert said in matvit("index", "add", out, *by)[2]


def test_folder_of_nothing_else_says_what_it_holds(tmp_path):
    (tmp_path / "a.arw").write_bytes(HEIC)
    with pytest.raises(ValueError, match=r"no images in .*; 1 file of a format that cannot"):
        Corpus.open(tmp_path)


def test_what_an_index_knows_of_the_rest_is_that_of_the_last_look(photos, tmp_path):
    index = ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "index")
    (photos / "f.psd").write_bytes(b"x")
    index = index.add(ToyEncoder(), Corpus.open(photos))
    assert index.info()["left_out"]["formats"][".psd"] == 1
