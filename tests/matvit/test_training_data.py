"""Labelled images, decoded once and kept: in memory, or on disk for every run that comes after."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from indexing.corpus.corpus import Corpus
from indexing.corpus.decoding import Decoders
from matvit.preprocess import Preprocess
from matvit.training import data as training_data
from matvit.training.data import LabelledPixels

SPEC = Preprocess(img_size=16)


def load(folder, preprocess=SPEC, **options):
    return LabelledPixels.load(Corpus.open(folder), preprocess, **options)


def test_images_come_decoded_with_their_labels(photo_folder):
    data = load(photo_folder)
    assert data.class_names == ["apple", "bread", "cheese"]
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    files = sorted(photo_folder.rglob("*.png"))
    for row, file in zip(data.pixels, files, strict=True):
        assert np.array_equal(row, SPEC.pixels(file))


def test_unreadable_and_unlabelled_images_are_left_out_and_counted(photo_folder):
    (photo_folder / "apple" / "bad.jpg").write_text("text")
    (photo_folder / "loose.png").write_bytes((photo_folder / "bread" / "01.png").read_bytes())
    data = load(photo_folder)
    assert (len(data), data.skipped) == (12, 2)
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_images_without_any_label_are_refused(photo_folder):
    with pytest.raises(ValueError, match="has no labels; training needs a folder per class"):
        load(photo_folder / "apple")


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_text("text")
    with pytest.raises(ValueError, match="none of the 1 images in .* can be read"):
        load(tmp_path)


def test_a_sample_is_spread_over_the_set(photo_folder):
    data = load(photo_folder)
    sample = data.sample(3)
    assert sample.labels.tolist() == [0, 1, 2]
    assert sample.skipped == 0
    assert len(data.sample(100)) == 12


def test_classes_are_matched_by_name(photo_folder):
    data = load(photo_folder)
    trained = ["zebra", "cheese", "apple", "bread"]
    assert data.with_classes(trained).labels.tolist() == [2] * 4 + [3] * 4 + [1] * 4
    with pytest.raises(ValueError, match=r"classes \['cheese'\] are not among the 2 trained"):
        data.with_classes(["apple", "bread"])


def test_fingerprint_follows_labels_classes_and_pixels(photo_folder):
    data = load(photo_folder)
    others = [
        replace(data, labels=data.labels[::-1].copy()),
        replace(data, class_names=["a", "b", "c"]),
        replace(data, pixels=255 - data.pixels),
    ]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert load(photo_folder).fingerprint == data.fingerprint


def test_without_labels_every_readable_image_counts(photo_folder):
    (photo_folder / "loose.png").write_bytes((photo_folder / "apple" / "00.png").read_bytes())
    (photo_folder / "broken.png").write_text("no image")
    data = load(photo_folder, Preprocess(img_size=8), labels=False)
    assert (len(data), data.skipped, data.class_names) == (13, 1, ["unlabelled"])
    assert (data.labels == 0).all()


def test_a_limit_takes_images_from_the_whole_set(photo_folder):
    everything = load(photo_folder, Preprocess(img_size=8))
    some = load(photo_folder, Preprocess(img_size=8), limit=4)
    expected = [0, 3, 7, 11]
    assert np.array_equal(some.pixels, everything.pixels[expected])
    assert np.array_equal(some.labels, everything.labels[expected])
    assert some.skipped == 0


def test_a_subset_keeps_pixels_and_labels_together(photo_folder):
    everything = load(photo_folder, Preprocess(img_size=8))
    chosen = everything.subset(np.array([5, 2]))
    assert np.array_equal(chosen.pixels[0], everything.pixels[5])
    assert chosen.labels.tolist() == everything.labels[[5, 2]].tolist()


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_decoded(
    photo_folder, monkeypatch
):
    monkeypatch.setattr(training_data, "available_memory", lambda: 12 * 3 * 16 * 16 - 1)
    monkeypatch.setattr(Preprocess, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"12 images of 16 px need .* --cache DIR"):
        load(photo_folder)


def test_images_cached_on_disk_are_those_in_memory(photo_folder, tmp_path):
    (photo_folder / "apple" / "bad.jpg").write_text("text")
    (photo_folder / "loose.png").write_bytes((photo_folder / "bread" / "01.png").read_bytes())
    held = load(photo_folder)
    cached = load(photo_folder, cache=tmp_path / "cache")
    assert isinstance(cached.pixels, np.memmap)
    assert np.array_equal(cached.pixels, held.pixels)
    assert np.array_equal(cached.labels, held.labels)
    assert (cached.class_names, cached.skipped) == (held.class_names, held.skipped)
    assert cached.fingerprint == held.fingerprint


def test_cached_images_are_decoded_only_once(photo_folder, tmp_path, monkeypatch):
    first = load(photo_folder, cache=tmp_path / "cache")
    monkeypatch.setattr(Preprocess, "decode", lambda *_: pytest.fail("decoded again"))
    again = load(photo_folder, cache=tmp_path / "cache")
    assert np.array_equal(again.pixels, first.pixels)


def test_of_several_that_want_the_same_images_one_decodes(photo_folder, tmp_path, monkeypatch):
    decoded, decode = [], Corpus.decode

    def counted(self, preprocess):
        decoded.append(len(self))
        return decode(self, preprocess)

    monkeypatch.setattr(Corpus, "decode", counted)
    with ThreadPoolExecutor(3) as pool:
        loads = [pool.submit(load, photo_folder, cache=tmp_path / "cache") for _ in range(3)]
    assert len({data.result().fingerprint for data in loads}) == 1
    assert decoded == [12]


def test_a_limit_or_images_without_labels_are_cached_apart(photo_folder, tmp_path):
    (photo_folder / "loose.png").write_bytes((photo_folder / "apple" / "00.png").read_bytes())
    for options in ({}, {"limit": 4}, {"labels": False}):
        held = load(photo_folder, **options)
        cached = load(photo_folder, SPEC, cache=tmp_path / "cache", **options)
        assert cached.fingerprint == held.fingerprint


def entries(cache):
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_images_that_are_left_out_leave_no_gap(photo_folder, tmp_path):
    files = sorted(photo_folder.rglob("*.png"))
    for number in (0, 2, *range(4, 12)):
        files[number].write_text("text")
    data = load(photo_folder, cache=tmp_path / "cache")
    assert data.labels.tolist() == [0, 0]
    assert np.array_equal(data.pixels, np.stack([SPEC.pixels(files[row]) for row in (1, 3)]))


def test_other_images_or_another_size_are_another_entry(photo_folder, tmp_path):
    cache = tmp_path / "cache"
    load(photo_folder, cache=cache)
    larger = Preprocess(img_size=24)
    data = load(photo_folder, larger, cache=cache)
    assert data.pixels.shape == (12, 24, 24, 3)
    os.utime(photo_folder / "apple" / "00.png", ns=(1, 1))
    load(photo_folder, cache=cache)
    (photo_folder / "apple" / "00.png").rename(photo_folder / "apple" / "0.png")
    load(photo_folder, cache=cache)
    assert len(entries(cache)) == 4


def test_a_run_that_is_killed_while_it_decodes_leaves_no_entry(photo_folder, tmp_path, monkeypatch):
    cache, decode = tmp_path / "cache", Corpus.decode

    def killed(self, preprocess):
        yield next(decode(self, preprocess, Decoders(batch_size=5)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "decode", killed)
        with pytest.raises(KeyboardInterrupt):
            load(photo_folder, cache=cache)
    assert all(name.endswith(".partial") for name in entries(cache))
    assert len(load(photo_folder, cache=cache)) == 12
    assert len(entries(cache)) == 1


def test_a_set_without_a_readable_image_is_no_entry(photo_folder, tmp_path):
    for file in photo_folder.rglob("*.png"):
        file.write_text("text")
    with pytest.raises(ValueError, match="none of the 12 images in .* can be read"):
        load(photo_folder, cache=tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_a_disk_without_room_is_said_before_anything_is_decoded(
    photo_folder, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=12 * 3 * 256 - 1))
    monkeypatch.setattr(Preprocess, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(OSError, match=r"the decoded images need 0\.0 GB, but .* on another disk"):
        load(photo_folder, cache=tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_what_is_cached_cannot_be_changed_by_accident(photo_folder, tmp_path):
    data = load(photo_folder, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="read-only"):
        data.pixels[0] = 0


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine with 2,000 kB available and no container."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 2000 kB\n")
    monkeypatch.setattr(training_data, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(training_data, "_CGROUP", tmp_path)
    return tmp_path


def contain(folder, limit: str) -> None:
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text("600000\n")
    (folder / "memory.stat").write_text("anon 500000\ninactive_file 100000\n")


def test_the_machine_says_what_is_available(system):
    assert training_data.available_memory() == 2000 * 1024


def test_the_smaller_of_machine_and_container_counts(system):
    contain(system, "1000000")
    assert training_data.available_memory() == 1_000_000 - 600_000 + 100_000
    contain(system, "9000000000")
    assert training_data.available_memory() == 2000 * 1024
    contain(system, "max")
    assert training_data.available_memory() == 2000 * 1024


def test_a_system_that_does_not_say_is_not_guessed_at(system):
    (system / "meminfo").unlink()
    assert training_data.available_memory() is None
