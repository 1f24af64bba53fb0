from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from matvit.preprocess import Preprocess
from matvit.training import data as training_data
from matvit.training.data import LabelledPixels

SPEC = Preprocess(img_size=16)


def test_images_come_decoded_with_their_labels(photo_folder):
    data = LabelledPixels.load(photo_folder, SPEC)
    assert data.class_names == ["apple", "bread", "cheese"]
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    files = sorted(photo_folder.rglob("*.png"))
    for row, file in zip(data.pixels, files, strict=True):
        assert np.array_equal(row, SPEC.pixels(file))


def test_unreadable_and_unlabelled_images_are_left_out_and_counted(photo_folder):
    (photo_folder / "apple" / "bad.jpg").write_text("text")
    (photo_folder / "loose.png").write_bytes((photo_folder / "bread" / "01.png").read_bytes())
    data = LabelledPixels.load(photo_folder, SPEC)
    assert (len(data), data.skipped) == (12, 2)
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_images_without_any_label_are_refused(photo_folder):
    with pytest.raises(ValueError, match="has no labels; training needs a folder per class"):
        LabelledPixels.load(photo_folder / "apple", SPEC)


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_text("text")
    with pytest.raises(ValueError, match="none of the 1 images in .* can be read"):
        LabelledPixels.load(tmp_path, SPEC)


def test_a_sample_is_spread_over_the_set(photo_folder):
    data = LabelledPixels.load(photo_folder, SPEC)
    sample = data.sample(3)
    assert sample.labels.tolist() == [0, 1, 2]
    assert sample.skipped == 0
    assert len(data.sample(100)) == 12


def test_classes_are_matched_by_name(photo_folder):
    data = LabelledPixels.load(photo_folder, SPEC)
    trained = ["zebra", "cheese", "apple", "bread"]
    assert data.with_classes(trained).labels.tolist() == [2] * 4 + [3] * 4 + [1] * 4
    with pytest.raises(ValueError, match=r"classes \['cheese'\] are not among the 2 trained"):
        data.with_classes(["apple", "bread"])


def test_fingerprint_follows_labels_classes_and_pixels(photo_folder):
    data = LabelledPixels.load(photo_folder, SPEC)
    others = [
        replace(data, labels=data.labels[::-1].copy()),
        replace(data, class_names=["a", "b", "c"]),
        replace(data, pixels=255 - data.pixels),
    ]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert LabelledPixels.load(photo_folder, SPEC).fingerprint == data.fingerprint


def test_without_labels_every_readable_image_counts(photo_folder):
    (photo_folder / "loose.png").write_bytes((photo_folder / "apple" / "00.png").read_bytes())
    (photo_folder / "broken.png").write_text("no image")
    data = LabelledPixels.load(photo_folder, Preprocess(img_size=8), labels=False)
    assert (len(data), data.skipped, data.class_names) == (13, 1, ["unlabelled"])
    assert (data.labels == 0).all()


def test_a_limit_takes_images_from_the_whole_set(photo_folder):
    everything = LabelledPixels.load(photo_folder, Preprocess(img_size=8))
    some = LabelledPixels.load(photo_folder, Preprocess(img_size=8), limit=4)
    expected = [0, 3, 7, 11]
    assert np.array_equal(some.pixels, everything.pixels[expected])
    assert np.array_equal(some.labels, everything.labels[expected])
    assert some.skipped == 0


def test_a_subset_keeps_pixels_and_labels_together(photo_folder):
    everything = LabelledPixels.load(photo_folder, Preprocess(img_size=8))
    chosen = everything.subset(np.array([5, 2]))
    assert np.array_equal(chosen.pixels[0], everything.pixels[5])
    assert chosen.labels.tolist() == everything.labels[[5, 2]].tolist()


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_decoded(
    photo_folder, monkeypatch
):
    monkeypatch.setattr(training_data, "available_memory", lambda: 12 * 3 * 16 * 16 - 1)
    monkeypatch.setattr(Preprocess, "pixels", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"12 images of 16 px need .* --cache DIR"):
        LabelledPixels.load(photo_folder, SPEC)


def test_images_cached_on_disk_are_those_in_memory(photo_folder, tmp_path):
    (photo_folder / "apple" / "bad.jpg").write_text("text")
    (photo_folder / "loose.png").write_bytes((photo_folder / "bread" / "01.png").read_bytes())
    held = LabelledPixels.load(photo_folder, SPEC)
    cached = LabelledPixels.load(photo_folder, SPEC, cache=tmp_path / "cache", workers=3)
    assert isinstance(cached.pixels, np.memmap)
    assert np.array_equal(cached.pixels, held.pixels)
    assert np.array_equal(cached.labels, held.labels)
    assert (cached.class_names, cached.skipped) == (held.class_names, held.skipped)
    assert cached.fingerprint == held.fingerprint


def test_cached_images_are_decoded_only_once(photo_folder, tmp_path, monkeypatch):
    first = LabelledPixels.load(photo_folder, SPEC, cache=tmp_path / "cache")
    monkeypatch.setattr(Preprocess, "pixels", lambda *_: pytest.fail("decoded again"))
    again = LabelledPixels.load(photo_folder, SPEC, cache=tmp_path / "cache")
    assert np.array_equal(again.pixels, first.pixels)


def test_a_limit_or_images_without_labels_are_cached_apart(photo_folder, tmp_path):
    (photo_folder / "loose.png").write_bytes((photo_folder / "apple" / "00.png").read_bytes())
    for options in ({}, {"limit": 4}, {"labels": False}):
        held = LabelledPixels.load(photo_folder, SPEC, **options)
        cached = LabelledPixels.load(photo_folder, SPEC, cache=tmp_path / "cache", **options)
        assert cached.fingerprint == held.fingerprint
