"""Updating: only what is new or changed is embedded, and ids stay what they were.

Mutants these must catch: an id given twice; a renamed file embedded again; a changed file that
keeps its vector; a removed image that comes back or takes the place of a live one among k; classes
renumbered by a new folder; failures read again at each addition, or never.
"""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from toy import ToyEncoder, photo
from updating import assert_finds_exactly_its_photos, counts

from indexing import Corpus, ImageIndex, IndexMismatchError, stage, write
from indexing.store.folder import commit


def test_nothing_new_changes_nothing(index, add_all, embedded):
    before = (index.path / "manifest.json").read_bytes()
    index = add_all()
    assert counts(index.report) == {"unchanged": 6}
    assert (index.path / "manifest.json").read_bytes() == before
    assert embedded == []


def test_new_files_are_embedded_and_get_the_next_ids(index, photos, add_all, embedded):
    photo(photos / "apple/20.png", 20)
    photo(photos / "bread/21.png", 21)
    index = add_all()
    assert counts(index.report) == {"added": 2, "unchanged": 6}
    assert (index.report.images, index.report.generation) == (8, 2)
    assert sum(embedded) == 2
    assert index.ids.tolist() == list(range(8))
    assert index.paths[6:] == ["apple/20.png", "bread/21.png"]
    assert index.class_names == ["apple", "cheese", "bread"]
    assert_finds_exactly_its_photos(index, photos)


def test_changed_file_is_another_image(index, photos, add_all, embedded):
    old = index.paths.index("apple/2.png")
    photo(photos / "apple/2.png", 30)
    index = add_all()
    assert counts(index.report) == {"changed": 1, "unchanged": 5}
    assert sum(embedded) == 1
    assert old not in index.ids
    assert index.paths[index.rows_of(np.array(6))] == "apple/2.png"
    assert index.image_bytes(6) == (photos / "apple/2.png").read_bytes()
    assert_finds_exactly_its_photos(index, photos)


def test_touched_file_is_read_once_and_embedded_never(index, photos, add_all, embedded):
    os.utime(photos / "cheese/1.png", ns=(5, 5))
    for _ in range(2):
        index = add_all()
        assert counts(index.report) == {"unchanged": 6}
    assert embedded == []
    assert index.ids.tolist() == list(range(6))
    row = index.paths.index("cheese/1.png")
    assert index.metadata.column("mtime_ns")[row].as_py() == 5
    generation = index.info()["generation"]
    index = add_all()
    assert index.info()["generation"] == generation
    assert_finds_exactly_its_photos(index, photos)


def test_renamed_file_keeps_id_and_vector(index, photos, add_all, embedded):
    (photos / "zoo").mkdir()
    (photos / "apple/0.png").rename(photos / "zoo/first.png")
    before = index.embeddings.raw(slice(None))
    index = add_all(remove_missing=True)
    assert counts(index.report) == {"renamed": 1, "unchanged": 5}
    assert embedded == []
    assert index.paths[0] == "zoo/first.png"
    assert index.class_names[index.labels[0]] == "zoo"
    np.testing.assert_array_equal(index.embeddings.raw(slice(None)), before)
    assert index.image_bytes(0) == (photos / "zoo/first.png").read_bytes()
    assert_finds_exactly_its_photos(index, photos)


def test_renamed_folder_costs_no_embedding(index, photos, add_all, embedded):
    (photos / "apple").rename(photos / "pear")
    index = add_all(remove_missing=True)
    assert counts(index.report) == {"renamed": 3, "unchanged": 3, "failed": 1}
    assert embedded == []
    assert [failure.path for failure in index.failures] == ["pear/bad.png"]
    assert_finds_exactly_its_photos(index, photos)


def test_copy_is_an_image_of_its_own_with_the_same_vector(index, photos, add_all, embedded):
    shutil.copy2(photos / "apple/0.png", photos / "apple/00.png")
    index = add_all()
    assert counts(index.report) == {"added": 1, "unchanged": 6}
    assert embedded == []
    assert index.ids.tolist() == list(range(7))
    ids, scores = index.search(index.embeddings[:1], 2)
    assert ids.tolist() == [[0, 6]]
    assert scores[0, 0] == scores[0, 1]
    assert_finds_exactly_its_photos(index, photos)


def test_files_that_change_places_are_both_found(index, photos, add_all):
    first, second, aside = (photos / name for name in ("apple/0.png", "apple/2.png", "aside"))
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    for number, path in enumerate((first, second)):
        os.utime(path, ns=(number, number))
    index = add_all()
    assert index.report.images == 6
    assert sorted(index.paths) == sorted({*index.paths})
    assert_finds_exactly_its_photos(index, photos)


def test_missing_files_are_removed_only_when_asked(index, photos, add_all):
    (photos / "apple/4.png").unlink()
    (photos / "apple/bad.png").unlink()
    index = add_all()
    assert counts(index.report) == {"unchanged": 6}
    index = add_all(remove_missing=True)
    assert counts(index.report) == {"removed": 1, "unchanged": 5}
    assert index.failures == []
    assert "apple/4.png" not in index.paths
    assert_finds_exactly_its_photos(index, photos)


def test_failures_are_read_again_when_asked_or_when_they_change(index, photos, add_all):
    bad = photos / "apple/bad.png"
    index = add_all()
    assert counts(index.report) == {"unchanged": 6}
    index = add_all(retry_failed=True)
    assert counts(index.report) == {"unchanged": 6, "failed": 1}
    assert [failure.path for failure in index.failures] == ["apple/bad.png"]
    photo(bad, 40)
    index = add_all()
    assert counts(index.report) == {"added": 1, "unchanged": 6}
    assert index.failures == []
    bad.write_text("broken again")
    index = add_all()
    assert counts(index.report) == {"removed": 1, "unchanged": 6, "failed": 1}
    assert [failure.path for failure in index.failures] == ["apple/bad.png"]
    assert_finds_exactly_its_photos(index, photos)


def test_addition_without_any_readable_image_keeps_what_there_is(index, photos, add_all):
    (photos / "apple/worse.png").write_text("no image")
    index = add_all()
    assert counts(index.report) == {"unchanged": 6, "failed": 1}
    assert len(index.failures) == 2
    assert_finds_exactly_its_photos(index, photos)


def test_interrupted_addition_is_not_searched_and_goes_on(
    index, photos, add_all, embedded, monkeypatch
):
    for number in range(5):
        photo(photos / f"new/{number}.png", 50 + number)
    monkeypatch.setattr(write, "SHARD_SIZE", 2)
    done = []

    def late(folder, manifest):
        commit(folder, manifest)
        done.append(manifest)
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "commit", late)
        with pytest.raises(KeyboardInterrupt):
            add_all()
    assert sum(embedded) == 4
    reopened = ImageIndex.open(index.path)
    assert (len(reopened), reopened.info()["staged"]) == (6, 4)
    assert reopened.verify().ok
    reopened.remove([2]).compact()
    index = add_all()
    assert counts(index.report) == {"added": 6, "unchanged": 5}  # 2 is there again: its file is
    assert sum(embedded) == 6
    assert index.ids.tolist() == [0, 1, 3, 4, 5, *range(6, 12)]
    assert_finds_exactly_its_photos(index, photos)


def test_another_encoder_cannot_add(index, photos):
    other = ToyEncoder()
    other.fingerprint = "71" * 8
    with pytest.raises(IndexMismatchError, match="was built by encoder toy"):
        index.add(other, Corpus.open(photos))


def test_another_folder_cannot_be_added(index, tmp_path):
    photo(tmp_path / "other/1.png", 1)
    with pytest.raises(ValueError, match="holds images of the folder .*photos, so the folder"):
        index.add(ToyEncoder(), Corpus.open(tmp_path / "other"))
