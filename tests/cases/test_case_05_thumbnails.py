"""Thumbnails and bins of NAS and desktop systems are left out; patterns leave out or take more."""

from __future__ import annotations

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex

JUNK = ["@eaDir/a.png", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", "sub/@EADIR/b.png"]


@pytest.fixture
def photos(tmp_path):
    photo(tmp_path / "photos/a.png", 0)
    for folder in JUNK:
        photo(tmp_path / "photos" / folder / "SYNOPHOTO_THUMB_M.png", 1)
    return tmp_path / "photos"


def names(corpus):
    return corpus.names.to_pylist()


def test_folders_of_thumbnails_and_deleted_files_are_left_out_and_counted(photos):
    corpus = Corpus.open(photos)
    assert names(corpus) == ["a.png"]
    assert sum(corpus.left_out.folders.values()) == len(JUNK)
    assert "6 folders of thumbnails or deleted files left out" in corpus.left_out.in_words()[0]


def test_folder_of_thumbnails_is_taken_if_it_is_named(photos):
    corpus = Corpus.open(photos, include=["@eaDir"])
    assert names(corpus) == [
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.png", "sub/@EADIR/b.png/SYNOPHOTO_THUMB_M.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    [
        (None, ["*.gif"], ["2020/a.jpg", "2020/x/b.png", "2021/a.JPG"]),
        (None, ["2020"], ["2021/a.JPG", "2021/c.gif"]),
        (None, ["2020/*.jpg"], ["2020/x/b.png", "2021/a.JPG", "2021/c.gif"]),
        (None, ["**/x/**"], ["2020/a.jpg", "2021/a.JPG", "2021/c.gif"]),
        (["*.jpg"], None, ["2020/a.jpg", "2021/a.JPG"]),
        (["2020/", "*.gif"], ["b.*"], ["2020/a.jpg", "2021/c.gif"]),
        (None, ["[ab].*"], ["2021/c.gif"]),
        (None, ["[!a].*", "2021"], ["2020/a.jpg"]),
        (None, ["?.gif", "2020/x"], ["2020/a.jpg", "2021/a.JPG"]),
    ],
)
def test_patterns_say_what_is_taken(tmp_path, include, exclude, kept):
    for name in ("2020/a.jpg", "2020/x/b.png", "2021/a.JPG", "2021/c.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    corpus = Corpus.open(tmp_path, include=include, exclude=exclude)
    assert names(corpus) == kept
    assert "left out by patterns" in corpus.left_out.in_words()[-1]


@pytest.mark.parametrize("pattern", ["", "/", "[z-a]*"])
def test_what_is_no_pattern_is_refused(photos, pattern):
    with pytest.raises(ValueError, match="is no pattern; write something such as"):
        Corpus.open(photos, exclude=[pattern])
    with pytest.raises(ValueError, match="must be a list of patterns, got"):
        Corpus.open(photos, exclude="*.gif")


def test_what_was_chosen_is_kept_when_the_index_is_updated(photos, tmp_path):
    photo(photos / "old/b.png", 2)
    corpus = Corpus.open(photos, exclude=["old"])
    index = ImageIndex.build(ToyEncoder(), corpus, tmp_path / "index")
    photo(photos / "c.png", 3)
    index = index.add(ToyEncoder(), Corpus.open(photos))
    assert index.paths == ["a.png", "c.png"]
    assert index.info()["selection"]["exclude"] == ("old",)
    index = index.add(ToyEncoder(), Corpus.open(photos, exclude=[]))
    assert index.paths == ["a.png", "c.png", "old/b.png"]


def test_options_of_the_command_are_kept_for_add(photos, tmp_path, matvit, encoder):
    photo(photos / "b.gif", 2)
    out, by = tmp_path / "index", ("--encoder", encoder)
    _, shown, said = matvit("index", "build", photos, "--out", out, *by, "--exclude", "*.gif")
    assert "1 images in" in shown
    assert "1 left out by patterns" in said
    photo(photos / "c.gif", 3)
    photo(photos / "c.png", 4)
    assert "2 images in" in matvit("index", "add", out, *by)[1]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_patterns_choose_among_images_of_other_places(tmp_path, kind):
    if kind == "tar":
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name in ("a/1.png", "b/2.png"):
                tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    else:
        rows = [{"bytes": b"x", "path": name} for name in ("a/1.png", "b/2.png")]
        pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    corpus = Corpus.open(tmp_path, exclude=["a"])
    assert [name.rpartition("/")[2] for name in names(corpus)] == ["2.png"]
    assert corpus.left_out.excluded == 1
