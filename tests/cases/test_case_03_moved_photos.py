"""Photos that were moved: the index is told where they are, and embeds nothing again.

Mutants these must catch: another folder accepted; only the names compared; an unfinished addition
left at the old place; an index that is changed although the move is refused.
"""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy import ToyEncoder, photo

from indexing import Corpus, ImageIndex, stage
from indexing.store.folder import commit, read_finished

TOY = ToyEncoder()


@pytest.fixture
def photos(tmp_path):
    for number in range(6):
        photo(tmp_path / f"a/{number % 2}/{number}.png", number)
    return tmp_path / "a"


@pytest.fixture
def index(photos, tmp_path):
    return ImageIndex.build(TOY, Corpus.open(photos), tmp_path / "index")


def test_hits_name_the_new_place_and_nothing_is_embedded_again(
    index, photos, tmp_path, monkeypatch
):
    photos.rename(tmp_path / "b")
    monkeypatch.setattr(stage, "embed", None)
    moved = index.relocate(tmp_path / "b")
    assert (moved.report.root, moved.report.images) == (str(tmp_path / "b"), 6)
    assert moved.report.compared == 6
    assert moved.info()["corpus"]["root"] == str(tmp_path / "b")
    assert moved.image_bytes(3) == (tmp_path / "b" / moved.paths[3]).read_bytes()
    np.testing.assert_array_equal(moved.ids, index.ids)
    np.testing.assert_array_equal(moved.embeddings[:], index.embeddings[:])
    assert moved.add(TOY, Corpus.open(tmp_path / "b")).report.unchanged == 6


def test_copies_with_other_times_are_read_but_not_embedded(index, photos, tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    for path in sorted(photos.rglob("*.png")):
        copy = tmp_path / "b" / path.relative_to(photos)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    moved = index.relocate(tmp_path / "b")
    monkeypatch.setattr(stage, "embed", None)
    report = moved.add(TOY, Corpus.open(tmp_path / "b")).report
    assert (report.unchanged, report.added, report.changed) == (6, 0, 0)


@pytest.mark.parametrize("wrong", ["a name is missing", "one has other content", "no folder"])
def test_place_that_is_not_of_these_images_is_refused(index, photos, tmp_path, wrong):
    before = (index.path / "manifest.json").read_bytes()
    other = shutil.copytree(photos, tmp_path / "b")
    if wrong == "a name is missing":
        (other / "1/3.png").unlink()
        expected = r"stays as it is: 1 of its 6 images are not in .*, such as 1/3.png; name the"
    elif wrong == "one has other content":
        photo(other / "1/3.png", 99)
        expected = r"stays as it is, these are not its images: 1/3.png in .* has changed since"
    else:
        other, expected = tmp_path / "nothing", "no such folder or file"
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        index.relocate(other)
    assert (index.path / "manifest.json").read_bytes() == before


def test_all_images_are_compared_if_asked_for(index, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("indexing.relocate._COMPARED", 2)
    other = shutil.copytree(photos, tmp_path / "b")
    photo(other / "1/3.png", 99)  # in the middle of six, of which the first and the last are read
    with pytest.raises(ValueError, match=r"1/3.png in .* has changed"):
        index.relocate(other, rehash=True)
    assert index.relocate(other).report.compared == 2


def test_unfinished_addition_moves_along(index, photos, tmp_path, monkeypatch):
    photo(photos / "0/new.png", 20)

    def stopped(path, manifest):
        commit(path, manifest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "commit", stopped)
        with pytest.raises(KeyboardInterrupt):
            index.add(TOY, Corpus.open(photos))
    photos.rename(tmp_path / "b")
    moved = index.relocate(tmp_path / "b")
    assert read_finished(index.path).adding.root == str(tmp_path / "b")
    monkeypatch.setattr(stage, "embed", None)
    assert moved.add(TOY, Corpus.open(tmp_path / "b")).report.added == 1


def test_parquet_files_move_too(photos, tmp_path):
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in photos.rglob("*.png")]
    pq.write_table(pa.table({"image": rows}), tmp_path / "old.parquet")
    index = ImageIndex.build(TOY, Corpus.open(tmp_path / "old.parquet"), tmp_path / "rows")
    (tmp_path / "new").mkdir()
    (tmp_path / "old.parquet").rename(tmp_path / "new/old.parquet")
    moved = index.relocate(tmp_path / "new/old.parquet")
    assert moved.image_bytes(2) == rows[2]["bytes"]


def test_command_says_what_to_do_and_does_it(matvit, photo_folder, encoder, tmp_path):
    index = tmp_path / "photos.index"
    matvit("index", "build", photo_folder, "--out", index, "--encoder", encoder)
    photo_folder.rename(tmp_path / "b")
    code, _, err = matvit("index", "add", index, "--encoder", encoder)
    assert code == 1
    assert "no such folder or file" in err
    assert "matvit index relocate INDEX PLACE" in err
    photo_folder.symlink_to(tmp_path / "b")
    for place in ((), (tmp_path / "b",)):  # whose links are resolved
        code, _, err = matvit("index", "add", index, *place, "--encoder", encoder)
        assert code == 1
        assert "if they have moved: matvit index relocate INDEX PLACE" in err
    photo_folder.unlink()
    code, out, _ = matvit("index", "relocate", index, tmp_path / "b")
    assert (code, out) == (
        0,
        f"The 12 images of {index} are now in {tmp_path / 'b'}: all names are there, 12 were read "
        "and are the same.\n",
    )
    assert matvit("index", "add", index, "--encoder", encoder)[0] == 0
    assert matvit("index", "relocate", index, tmp_path)[0] == 1
