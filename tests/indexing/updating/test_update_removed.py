"""Removing images and giving back their space; ids are never given twice."""

from __future__ import annotations

import numpy as np
import pytest
from toy import photo
from updating import QUERIES, assert_finds_exactly_its_photos

from indexing import ImageIndex


def test_removed_images_are_found_no_more_and_the_others_fill_k(index, photos):
    best = index.search(QUERIES, 6)[0]
    gone = best[0, :2].tolist()
    index = index.remove(gone)
    report = index.report
    assert (report.removed, report.images, report.generation) == (2, 4, 2)
    ids, _ = index.search(QUERIES, 4)
    expected = [[image for image in row if image not in gone] for row in best.tolist()]
    assert ids.tolist() == expected
    assert index.search(QUERIES, 6)[0].shape == (6, 4)
    for number in gone:
        with pytest.raises(KeyError, match=f"no image with id {number}"):
            index.rows_of(np.array(number))
    assert_finds_exactly_its_photos(index, photos)


def test_images_are_removed_by_name_too_and_failures_forgotten(index, photos):
    index = index.remove(np.array([0]), paths=["cheese/1.png", "apple/bad.png"])
    assert (index.report.removed, index.report.forgotten) == (2, 1)
    assert index.failures == []
    assert not {"apple/0.png", "cheese/1.png"} & set(index.paths)
    assert_finds_exactly_its_photos(index, photos)


@pytest.mark.parametrize(
    ("ids", "paths", "error", "message"),
    [
        ([0, 9], [], KeyError, "has no image with id 9"),
        ([0], ["apple/x.png"], KeyError, "has no image called 'apple/x.png'"),
        ([], [], ValueError, "name the images to remove"),
        (range(6), [], ValueError, "would remove all 6 images"),
    ],
)
def test_removal_is_all_or_nothing(index, ids, paths, error, message):
    before = (index.path / "manifest.json").read_bytes()
    with pytest.raises(error, match=message):
        index.remove(ids, paths=paths)
    assert (index.path / "manifest.json").read_bytes() == before
    assert len(ImageIndex.open(index.path)) == 6


def test_ids_are_never_given_twice(index, photos, add_all):
    last = index.paths[5]
    index.remove([5]).compact()
    index = add_all()
    assert index.report.added == 1
    assert index.paths[-1] == last
    assert index.ids.tolist() == [0, 1, 2, 3, 4, 6]


def test_compacting_changes_files_but_no_answer(index, photos, add_all):
    photo(photos / "apple/20.png", 20)
    index = add_all()
    index = index.remove([1, 3])
    before = [part.tolist() for part in index.search(QUERIES, 6)]
    metadata, raw, failures = index.metadata, index.embeddings.raw(slice(None)), index.failures
    index = index.compact()
    report = index.report
    assert (report.rows, report.shards, report.images) == (2, 2, 5)
    assert report.bytes > 0
    assert [part.tolist() for part in index.search(QUERIES, 6)] == before
    assert index.metadata.equals(metadata)
    assert index.failures == failures
    np.testing.assert_array_equal(index.embeddings.raw(slice(None)), raw)
    files = {path.name for path in index.path.rglob("*") if path.is_file()}
    data = {"img_emb_000002.npy", "metadata_000002.parquet", "failures_000003.parquet"}
    assert files == {"LOCK", "manifest.json", "manifest.json.prev", "knn_g4.faiss", *data}
    assert_finds_exactly_its_photos(index, photos)
    again = index.compact().report
    assert (again.rows, again.shards, again.bytes) == (0, 0, 0)
    assert again.generation == report.generation


def test_compacting_takes_nothing_that_is_not_its_own(index):
    (index.path / "notes.txt").write_text("mine")
    (index.path / "img_emb/photo.jpg").write_text("mine")
    (index.path / "img_emb/img_emb_000009.npy").write_text("left over")
    index = index.compact()
    assert (index.path / "notes.txt").exists()
    assert (index.path / "img_emb/photo.jpg").exists()
    assert not (index.path / "img_emb/img_emb_000009.npy").exists()
