"""Updating: only what is new or changed is embedded, and ids stay what they were.

Mutants these must catch: an id given twice; a renamed file embedded again; a changed file that
keeps its vector; a removed image that comes back or takes the place of a live one among k; classes
renumbered by a new folder; failures read again at each addition, or never.
"""

from __future__ import annotations

import os
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy import DIM, ToyEncoder, expected_embedding, photo

from indexing import Corpus, ImageIndex, IndexMismatchError, add, build, embedding
from indexing.storage import commit, writer_lock
from matvit import decoding
from matvit.embed import embed

QUERIES = np.random.default_rng(1).standard_normal((6, DIM)).astype(np.float32)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for number in range(6):
        photo(root / ("apple", "cheese")[number % 2] / f"{number}.png", number)
    (root / "apple/bad.png").write_text("no image")
    return root


@pytest.fixture
def index(photos, tmp_path):
    return ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "photos.index")


@pytest.fixture
def embedded(monkeypatch):
    """How many images were embedded, batch by batch."""
    counts = []

    def counting(encoder, pixels, **options):
        counts.append(len(pixels))
        return embed(encoder, pixels, **options)

    monkeypatch.setattr(embedding, "embed", counting)
    return counts


@pytest.fixture
def add_all(photos, index):
    return lambda **options: index.add(ToyEncoder(), Corpus.open(photos), **options)


def counts(report):
    names = ("added", "changed", "renamed", "removed", "unchanged", "failed")
    return {name: value for name in names if (value := getattr(report, name))}


def assert_finds_exactly_its_photos(index, photos):
    """Every row is the embedding of the file it names, and search is NumPy's over these rows."""
    exact = np.stack([expected_embedding(photos / path) for path in index.paths])
    np.testing.assert_allclose(index.embeddings[:], exact, atol=1e-3)  # stored as float16
    k = min(4, len(index))
    ids, scores = index.search(QUERIES, k)
    unit = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True)
    cosines = unit @ index.embeddings[:].T
    np.testing.assert_array_equal(ids, index.ids[np.argsort(-cosines, axis=1)[:, :k]])
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :k], atol=1e-6)
    classes = [path.split("/")[0] for path in index.paths]
    assert [index.class_names[label] for label in index.labels] == classes
    reopened = ImageIndex.open(index.path)
    assert reopened.metadata.equals(index.metadata)
    assert index.verify().ok


def test_nothing_new_changes_nothing(index, add_all, embedded):
    before = (index.path / "manifest.json").read_bytes()
    assert counts(add_all()) == {"unchanged": 6}
    assert (index.path / "manifest.json").read_bytes() == before
    assert embedded == []


def test_new_files_are_embedded_and_get_the_next_ids(index, photos, add_all, embedded):
    photo(photos / "apple/20.png", 20)
    photo(photos / "bread/21.png", 21)
    report = add_all()
    assert counts(report) == {"added": 2, "unchanged": 6}
    assert (report.images, report.generation) == (8, 2)
    assert sum(embedded) == 2
    assert index.ids.tolist() == list(range(8))
    assert index.paths[6:] == ["apple/20.png", "bread/21.png"]
    assert index.class_names == ["apple", "cheese", "bread"]
    assert_finds_exactly_its_photos(index, photos)


def test_changed_file_is_another_image(index, photos, add_all, embedded):
    old = index.paths.index("apple/2.png")
    photo(photos / "apple/2.png", 30)
    assert counts(add_all()) == {"changed": 1, "unchanged": 5}
    assert sum(embedded) == 1
    assert old not in index.ids
    assert index.paths[index.rows_of(np.array(6))] == "apple/2.png"
    assert index.image_bytes(6) == (photos / "apple/2.png").read_bytes()
    assert_finds_exactly_its_photos(index, photos)


def test_touched_file_is_read_once_and_embedded_never(index, photos, add_all, embedded):
    os.utime(photos / "cheese/1.png", ns=(5, 5))
    for _ in range(2):
        assert counts(add_all()) == {"unchanged": 6}
    assert embedded == []
    assert index.ids.tolist() == list(range(6))
    row = index.paths.index("cheese/1.png")
    assert index.metadata.column("mtime_ns")[row].as_py() == 5
    generation = index.info()["generation"]
    add_all()
    assert index.info()["generation"] == generation
    assert_finds_exactly_its_photos(index, photos)


def test_renamed_file_keeps_id_and_vector(index, photos, add_all, embedded):
    (photos / "zoo").mkdir()
    (photos / "apple/0.png").rename(photos / "zoo/first.png")
    before = index.embeddings.raw(slice(None))
    assert counts(add_all(remove_missing=True)) == {"renamed": 1, "unchanged": 5}
    assert embedded == []
    assert index.paths[0] == "zoo/first.png"
    assert index.class_names[index.labels[0]] == "zoo"
    np.testing.assert_array_equal(index.embeddings.raw(slice(None)), before)
    assert index.image_bytes(0) == (photos / "zoo/first.png").read_bytes()
    assert_finds_exactly_its_photos(index, photos)


def test_renamed_folder_costs_no_embedding(index, photos, add_all, embedded):
    (photos / "apple").rename(photos / "pear")
    assert counts(add_all(remove_missing=True)) == {"renamed": 3, "unchanged": 3, "failed": 1}
    assert embedded == []
    assert [failure.path for failure in index.failures] == ["pear/bad.png"]
    assert_finds_exactly_its_photos(index, photos)


def test_copy_is_an_image_of_its_own_with_the_same_vector(index, photos, add_all, embedded):
    shutil.copy2(photos / "apple/0.png", photos / "apple/00.png")
    assert counts(add_all()) == {"added": 1, "unchanged": 6}
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
    assert add_all().images == 6
    assert sorted(index.paths) == sorted({*index.paths})
    assert_finds_exactly_its_photos(index, photos)


def test_missing_files_are_removed_only_when_asked(index, photos, add_all):
    (photos / "apple/4.png").unlink()
    (photos / "apple/bad.png").unlink()
    assert counts(add_all()) == {"unchanged": 6}
    assert counts(add_all(remove_missing=True)) == {"removed": 1, "unchanged": 5}
    assert index.failures == []
    assert "apple/4.png" not in index.paths
    assert_finds_exactly_its_photos(index, photos)


def test_failures_are_read_again_when_asked_or_when_they_change(index, photos, add_all):
    bad = photos / "apple/bad.png"
    assert counts(add_all()) == {"unchanged": 6}
    assert counts(add_all(retry_failed=True)) == {"unchanged": 6, "failed": 1}
    assert [failure.path for failure in index.failures] == ["apple/bad.png"]
    photo(bad, 40)
    assert counts(add_all()) == {"added": 1, "unchanged": 6}
    assert index.failures == []
    bad.write_text("broken again")
    assert counts(add_all()) == {"removed": 1, "unchanged": 6, "failed": 1}
    assert [failure.path for failure in index.failures] == ["apple/bad.png"]
    assert_finds_exactly_its_photos(index, photos)


def test_addition_without_any_readable_image_keeps_what_there_is(index, photos, add_all):
    (photos / "apple/worse.png").write_text("no image")
    assert counts(add_all()) == {"unchanged": 6, "failed": 1}
    assert len(index.failures) == 2
    assert_finds_exactly_its_photos(index, photos)


def test_interrupted_addition_is_not_searched_and_goes_on(
    index, photos, add_all, embedded, monkeypatch
):
    for number in range(5):
        photo(photos / f"new/{number}.png", 50 + number)
    monkeypatch.setattr(add, "SHARD_SIZE", 2)
    done = []

    def late(folder, manifest):
        commit(folder, manifest)
        done.append(manifest)
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(add, "commit", late)
        with pytest.raises(KeyboardInterrupt):
            add_all()
    assert sum(embedded) == 4
    reopened = ImageIndex.open(index.path)
    assert (len(reopened), reopened.info()["staged"]) == (6, 4)
    assert reopened.verify().ok
    reopened.remove([2])
    reopened.compact()
    assert counts(add_all()) == {"added": 6, "unchanged": 5}  # 2 is there again: its file is
    assert sum(embedded) == 6
    assert index.ids.tolist() == [0, 1, 3, 4, 5, *range(6, 12)]
    assert_finds_exactly_its_photos(index, photos)


def test_removed_images_are_found_no_more_and_the_others_fill_k(index, photos):
    best = index.search(QUERIES, 6)[0]
    gone = best[0, :2].tolist()
    report = index.remove(gone)
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
    report = index.remove(np.array([0]), paths=["cheese/1.png", "apple/bad.png"])
    assert (report.removed, report.forgotten) == (2, 1)
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
    index.remove([5])
    index.compact()
    assert add_all().added == 1
    assert index.paths[-1] == last
    assert index.ids.tolist() == [0, 1, 2, 3, 4, 6]


def test_compacting_changes_files_but_no_answer(index, photos, add_all):
    photo(photos / "apple/20.png", 20)
    add_all()
    index.remove([1, 3])
    before = [part.tolist() for part in index.search(QUERIES, 6)]
    metadata, raw, failures = index.metadata, index.embeddings.raw(slice(None)), index.failures
    report = index.compact()
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
    again = index.compact()
    assert (again.rows, again.shards, again.bytes) == (0, 0, 0)
    assert again.generation == report.generation


def test_compacting_takes_nothing_that_is_not_its_own(index):
    (index.path / "notes.txt").write_text("mine")
    (index.path / "img_emb/photo.jpg").write_text("mine")
    (index.path / "img_emb/img_emb_000009.npy").write_text("left over")
    index.compact()
    assert (index.path / "notes.txt").exists()
    assert (index.path / "img_emb/photo.jpg").exists()
    assert not (index.path / "img_emb/img_emb_000009.npy").exists()


def test_another_encoder_cannot_add(index, photos):
    other = ToyEncoder()
    other.fingerprint = "71" * 8
    with pytest.raises(IndexMismatchError, match="was built by encoder toy"):
        index.add(other, Corpus.open(photos))


def test_another_folder_cannot_be_added(index, tmp_path):
    photo(tmp_path / "other/1.png", 1)
    with pytest.raises(ValueError, match="holds images of the folder .*photos, so the folder"):
        index.add(ToyEncoder(), Corpus.open(tmp_path / "other"))


def test_parquet_rows_that_moved_keep_their_ids(photos, tmp_path, embedded):
    def write(names):
        images = [{"bytes": (photos / name).read_bytes(), "path": name} for name in names]
        pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")

    write(["apple/0.png", "cheese/1.png"])
    corpus = Corpus.open(tmp_path / "x.parquet")
    index = ImageIndex.build(ToyEncoder(), corpus, tmp_path / "x.index")
    write(["cheese/3.png", "apple/0.png", "cheese/1.png"])
    os.utime(tmp_path / "x.parquet", ns=(1, 1))
    report = index.add(ToyEncoder(), Corpus.open(tmp_path / "x.parquet"))
    assert counts(report) == {"added": 1, "unchanged": 2}
    assert embedded == [2, 1]
    assert index.paths == ["apple/0.png", "cheese/1.png", "cheese/3.png"]
    for number, path in enumerate(index.paths):
        assert index.image_bytes(number) == (photos / path).read_bytes()


def test_names_that_are_shared_cannot_be_told_apart(photos, tmp_path):
    data = (photos / "apple/0.png").read_bytes()
    images = [{"bytes": data, "path": "same.png"}] * 2
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
    corpus = Corpus.open(tmp_path / "x.parquet")
    index = ImageIndex.build(ToyEncoder(), corpus, tmp_path / "x.index")
    with pytest.raises(ValueError, match=r"several images in .* are called 'same.png'"):
        index.add(ToyEncoder(), corpus)


def test_second_writer_is_refused_whatever_it_wants(index, photos, add_all):
    message = f"is being written by process {os.getpid()} on "
    with writer_lock(index.path):
        for write in (add_all, lambda: index.remove([1]), index.compact):
            with pytest.raises(BlockingIOError, match=message):
                write()
    assert len(ImageIndex.open(index.path)) == 6


def archive(path, *files):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, file.name)


def test_archives_may_hold_the_same_names_and_a_new_one_is_all_that_is_embedded(
    photos, tmp_path, embedded
):
    root, first, second = tmp_path / "tars", photos / "apple/0.png", photos / "cheese/1.png"
    archive(root / "b.tar", first)
    index = ImageIndex.build(ToyEncoder(), Corpus.open(root), tmp_path / "tars.index")
    shutil.copyfile(second, tmp_path / "0.png")
    archive(root / "a.tar", tmp_path / "0.png", photos / "apple/bad.png")
    embedded.clear()
    report = index.add(ToyEncoder(), Corpus.open(root))
    assert counts(report) == {"added": 1, "unchanged": 1, "failed": 1}
    assert sum(embedded) == 1
    assert dict(zip(index.ids, index.paths, strict=True)) == {0: "b.tar/0.png", 1: "a.tar/0.png"}
    assert index.image_bytes(0) == first.read_bytes()
    assert index.image_bytes(1) == second.read_bytes()
    assert [failure.path for failure in index.failures] == ["a.tar/bad.png"]
    assert counts(index.add(ToyEncoder(), Corpus.open(root))) == {"unchanged": 2}


def test_name_that_is_twice_in_one_archive_is_refused_by_an_addition(photos, tmp_path):
    archive(tmp_path / "a.tar", photos / "apple/0.png", photos / "apple/0.png")
    corpus = Corpus.open(tmp_path / "a.tar")
    index = ImageIndex.build(ToyEncoder(), corpus, tmp_path / "twice.index")
    with pytest.raises(ValueError, match=r"several images in .* are called 'a.tar/0.png'"):
        index.add(ToyEncoder(), corpus)


def test_processes_serve_all_shards_and_change_nothing(photos, index, tmp_path, monkeypatch):
    started = []

    class Counted(decoding._Process):
        def __init__(self, preprocess):
            started.append(self)
            super().__init__(preprocess)

    monkeypatch.setattr(decoding, "_Process", Counted)
    monkeypatch.setattr(build, "SHARD_SIZE", 2)
    monkeypatch.setattr(add, "SHARD_SIZE", 2)
    options = {"workers": 1, "processes": True}
    same = ImageIndex.build(ToyEncoder(), Corpus.open(photos), tmp_path / "same", **options)
    assert len(started) == 1
    for number in (6, 7, 8):
        photo(photos / f"cheese/{number}.png", number)
    started.clear()
    assert same.add(ToyEncoder(), Corpus.open(photos), **options).added == 3
    assert len(started) == 1
    index.add(ToyEncoder(), Corpus.open(photos), workers=0)
    assert same.metadata.equals(index.metadata)
    assert same.failures == index.failures
    np.testing.assert_array_equal(same.embeddings[:], index.embeddings[:])
