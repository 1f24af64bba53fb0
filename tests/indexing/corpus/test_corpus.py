"""Corpus: order, records, failures, and decoding ahead within bounds.

Mutants these must catch: a bad image that shifts the rows after it; batches in the order they
finish; size before orientation or at the reduced scale of a JPEG draft; positions of a subset
counted from its own start; decoding everything at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from indexing.corpus.corpus import Corpus
from indexing.corpus.decoding import Decoders
from indexing.records import RECORDS
from matvit.preprocess import Preprocess

PREPROCESS = Preprocess(img_size=8)
NAMES = [
    f"{name}/{number:02}.png"
    for first, name in enumerate(("apple", "bread", "cheese"))
    for number in range(first, 12, 3)
]


def jpeg(width, height, **settings):
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", **settings)
    return stream.getvalue()


@pytest.fixture
def damaged_folder(photo_folder):
    """The twelve photos, with four unreadable files sorted in between."""
    (photo_folder / "apple/02.jpg").write_text("this is a text file")
    (photo_folder / "bread/05.jpg").write_bytes(jpeg(64, 48)[:900])
    (photo_folder / "bread/06.png").touch()
    (photo_folder / "cheese/00.jpg").symlink_to(photo_folder / "gone.jpg")
    return photo_folder


@pytest.fixture
def parquet_file(photo_folder, tmp_path):
    """The twelve photos as the `datasets` library stores them, in two row groups."""
    files = [photo_folder / name for name in NAMES]
    images = [{"bytes": file.read_bytes(), "path": None} for file in files]
    table = pa.table({"image": images, "label": pa.array([0] * 4 + [1] * 4 + [2] * 4, pa.int64())})
    features = {"label": {"names": ["apple", "bread", "cheese"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path = tmp_path / "photos.parquet"
    pq.write_table(table, path, row_group_size=8)
    return path


def decode_all(corpus, **options):
    batches = list(corpus.decode(PREPROCESS, Decoders(**options)))
    pixels = np.concatenate([batch.pixels for batch in batches])
    records = [record for batch in batches for record in batch.records]
    failures = [failure for batch in batches for failure in batch.failures]
    return pixels, records, failures


def test_folder_is_sorted_by_name_and_labelled_by_first_folder(photo_folder):
    corpus = Corpus.from_folder(photo_folder)
    assert [corpus.name(index) for index in range(len(corpus))] == NAMES
    assert corpus.labels is not None
    assert corpus.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert corpus.class_names == ["apple", "bread", "cheese"]
    assert corpus.read(5) == (photo_folder / NAMES[5]).read_bytes()


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (5, 4), (12, 2), (100, 3), (5, 0)])
def test_decoding_keeps_the_order_whatever_the_batches_and_workers(
    photo_folder, batch_size, workers
):
    corpus = Corpus.open(photo_folder)
    pixels, records, failures = decode_all(corpus, batch_size=batch_size, workers=workers)
    assert [record.path for record in records] == NAMES
    expected = [PREPROCESS.pixels(photo_folder / name) for name in NAMES]
    np.testing.assert_array_equal(pixels, np.stack(expected))
    assert failures == []


def test_record_says_what_is_on_the_disk(photo_folder):
    _, records, _ = decode_all(Corpus.open(photo_folder))
    file, record = photo_folder / NAMES[6], records[6]
    assert (record.position, record.path, record.label) == (6, NAMES[6], 1)
    assert (record.width, record.height) == (24, 20)
    assert record.bytes == file.stat().st_size
    assert record.mtime_ns == file.stat().st_mtime_ns
    assert record.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_size_is_that_of_the_upright_original(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "large.jpg").write_bytes(jpeg(400, 300))  # decoded at a fraction of its size
    (tmp_path / "turned.jpg").write_bytes(jpeg(40, 20, exif=turned))
    _, records, _ = decode_all(Corpus.open(tmp_path))
    assert [(record.width, record.height) for record in records] == [(400, 300), (20, 40)]


def test_images_without_a_folder_have_no_label(tmp_path):
    (tmp_path / "alone.jpg").write_bytes(jpeg(9, 9))
    corpus = Corpus.open(tmp_path)
    assert (corpus.labels, corpus.class_names) == (None, None)
    assert decode_all(corpus)[1][0].label == -1


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_bad_images_are_recorded_and_shift_nothing(damaged_folder, batch_size):
    corpus = Corpus.open(damaged_folder)
    pixels, records, failures = decode_all(corpus, batch_size=batch_size)
    assert len(corpus) == 16
    assert [record.path for record in records] == NAMES
    for row, record in zip(pixels, records, strict=True):
        np.testing.assert_array_equal(row, PREPROCESS.pixels(damaged_folder / record.path))
        assert corpus.name(record.position) == record.path
    assert [(failure.path, failure.error, failure.position) for failure in failures] == [
        ("apple/02.jpg", "UnidentifiedImageError", 1),
        ("bread/05.jpg", "OSError", 7),
        ("bread/06.png", "ValueError", 8),
        ("cheese/00.jpg", "FileNotFoundError", 11),
    ]
    assert failures[0].message == "not a readable image: cannot identify image file"
    assert failures[2].message == "not a readable image: the file is empty"


def test_batch_of_bad_images_only_has_no_row(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no image")
    (batch,) = Corpus.open(tmp_path).decode(PREPROCESS)
    assert batch.pixels.shape == (0, 8, 8, 3)
    assert batch.records == []
    assert [failure.path for failure in batch.failures] == ["a.jpg", "b.jpg"]


def test_parquet_in_the_hugging_face_layout_equals_the_folder_it_was_made_from(
    parquet_file, photo_folder
):
    from_parquet, from_folder = Corpus.open(parquet_file), Corpus.open(photo_folder)
    assert (from_parquet.kind, from_folder.kind) == ("parquet", "folder")
    assert from_parquet.class_names == from_folder.class_names
    pixels, records, _ = decode_all(from_parquet, batch_size=5)
    expected_pixels, expected, _ = decode_all(from_folder)
    np.testing.assert_array_equal(pixels, expected_pixels)
    for name in ("position", "bytes", "sha256", "width", "height", "label"):
        assert [getattr(record, name) for record in records] == [
            getattr(record, name) for record in expected
        ]
    assert records[9].path == "photos.parquet#9"
    assert records[9].mtime_ns == parquet_file.stat().st_mtime_ns


def test_folder_of_parquet_files_is_opened_as_such(parquet_file, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    shutil.move(parquet_file, folder / "train.parquet")
    corpus = Corpus.open(folder)
    assert (corpus.kind, len(corpus), corpus.name(0)) == ("parquet", 12, "train.parquet#0")


def test_parquet_row_without_an_image_is_a_failure(tmp_path):
    images = [{"bytes": jpeg(9, 9)}, {"bytes": b""}, {"bytes": None}, {"bytes": jpeg(8, 8)}]
    pq.write_table(pa.table({"image": images}), tmp_path / "few.parquet")
    _, records, failures = decode_all(Corpus.open(tmp_path / "few.parquet"))
    assert [record.position for record in records] == [0, 3]
    assert [failure.position for failure in failures] == [1, 2]


def test_subset_keeps_the_chosen_images_with_their_positions_and_labels(photo_folder):
    corpus = Corpus.open(photo_folder).subset([10, 0, 5])
    assert len(corpus) == 3
    assert [corpus.name(index) for index in range(3)] == [NAMES[10], NAMES[0], NAMES[5]]
    assert corpus.labels is not None
    assert corpus.labels.tolist() == [2, 0, 1]
    _, records, _ = decode_all(corpus.subset(np.array([2, 1])))
    assert [(record.path, record.position) for record in records] == [(NAMES[5], 5), (NAMES[0], 0)]


def test_rows_of_a_batch_are_places_in_what_was_decoded(damaged_folder):
    corpus = Corpus.open(damaged_folder).subset([1, 15, 7, 0, 11, 3])
    batches = list(corpus.decode(PREPROCESS, Decoders(batch_size=2)))
    assert [batch.rows.tolist() for batch in batches] == [[1], [3], [5]]
    assert [batch.images for batch in batches] == [2, 2, 2]
    assert [record.position for batch in batches for record in batch.records] == [15, 0, 3]


def test_subset_outside_the_corpus_is_an_error(photo_folder):
    with pytest.raises(IndexError, match="12"):
        Corpus.open(photo_folder).subset([12])


def test_decoding_runs_two_batches_ahead_of_the_caller_and_no_further(photo_folder, monkeypatch):
    corpus = Corpus.open(photo_folder)
    reads = []
    fetch = corpus.source.fetch
    monkeypatch.setattr(corpus.source, "fetch", lambda i: (reads.append(i), fetch(i))[1])
    batches = corpus.decode(PREPROCESS, Decoders(batch_size=2, workers=2))
    next(batches)
    deadline = time.monotonic() + 10
    while len(reads) < 6 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert sorted(reads) == list(range(6))


def test_iterator_that_is_dropped_leaves_no_thread(photo_folder):
    batches = Corpus.open(photo_folder).decode(PREPROCESS, Decoders(batch_size=1))
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"workers": 0, "processes": True}, "workers must be at least 1 with processes, got 0"),
    ],
)
def test_impossible_sizes_are_refused_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        Decoders(**options)


def test_folder_that_goes_away_is_an_error_and_not_twelve_failures(photo_folder):
    corpus = Corpus.open(photo_folder)
    shutil.rmtree(photo_folder)
    with pytest.raises(FileNotFoundError, match="went away while it was read"):
        decode_all(corpus)


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or file: .*nowhere"):
        Corpus.open(tmp_path / "nowhere")


def test_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("no image here")
    with pytest.raises(ValueError, match="no images in"):
        Corpus.open(tmp_path)


def test_root_is_absolute_so_that_an_index_finds_it_from_anywhere(photo_folder, monkeypatch):
    monkeypatch.chdir(photo_folder)
    assert Corpus.open(Path("apple")).root == photo_folder / "apple"


def test_names_of_a_subset_are_known_without_reading(photo_folder):
    corpus = Corpus.open(photo_folder).subset([3, 1])
    assert corpus.names.to_pylist() == [NAMES[3], NAMES[1]]


def test_columns_are_the_records(photo_folder):
    (batch,) = Corpus.open(photo_folder).decode(PREPROCESS)
    assert batch.columns.schema.equals(RECORDS)
    assert batch.columns.to_pylist() == [asdict(record) for record in batch.records]
    assert len(batch) == 12


def test_stamp_is_size_and_time_without_reading(photo_folder):
    corpus = Corpus.open(photo_folder)
    file = photo_folder / corpus.name(3)
    os.utime(file, ns=(7, 7))
    file.chmod(0o600)
    assert corpus.stamp(3) == (file.stat().st_size, 7)
    assert corpus.subset([3]).stamp(0) == (file.stat().st_size, 7)
    file.unlink()
    assert corpus.stamp(3) == (-1, -1)


def test_list_has_another_fingerprint_when_a_name_comes_goes_or_moves(photo_folder):
    corpus = Corpus.open(photo_folder)
    same = {Corpus.open(photo_folder).list_sha256, corpus.list_sha256}
    assert len(same) == 1
    others = {
        corpus.subset(range(11)).list_sha256,
        corpus.subset(range(11, -1, -1)).list_sha256,
        corpus.without_labels().list_sha256,
    }
    (photo_folder / "apple/00.png").rename(photo_folder / "apple/000.png")
    others.add(Corpus.open(photo_folder).list_sha256)
    assert len(others | same) == 5


def test_failure_knows_size_and_time_of_its_file(tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    os.utime(bad, ns=(7, 7))
    (batch,) = Corpus.open(tmp_path).decode(Preprocess(img_size=8))
    (failure,) = batch.failures
    assert (failure.bytes, failure.mtime_ns) == (8, 7)
