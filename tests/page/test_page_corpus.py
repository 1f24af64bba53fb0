from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest

from app.page import corpus
from app.page.corpus import is_built
from indexing import Corpus, Failure, ImageIndex


@pytest.fixture
def index(tiny_model, photo_folder, tmp_path) -> ImageIndex:
    (photo_folder / "apple" / "bad.jpg").write_text("text")
    return ImageIndex.build(tiny_model, Corpus.open(photo_folder), tmp_path / "i.index")


def failures(count: int) -> list[Failure]:
    return [Failure(f"{number}.jpg", "ValueError", "why", number, 1, 1) for number in range(count)]


def test_an_index_is_described(index, photo_folder, tiny_model):
    told = dict(corpus.facts_of(index.info()))
    assert told["Corpus"] == f"{photo_folder.resolve()} (folder, 13 images)"
    assert told["Encoder"].startswith("tiny, 0.00")
    assert told["Fingerprint of the encoder"] == tiny_model.fingerprint
    assert told["Embeddings"] == "16 numbers each"
    assert told["Search"] == "Flat, exact"
    assert told["Generation"] == "1"
    assert "Removed, not yet compacted" not in told


def test_what_an_index_keeps_without_showing_it_is_told(index):
    index = index.remove([0, 1])
    told = dict(corpus.facts_of(index.info()))
    assert told["Removed, not yet compacted"] == "2 images"
    assert int(told["Generation"]) > 1


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "part of it."),
        (1, "One image could not be read and is not in the index."),
        (1200, "1,200 images could not be read and are not in the index."),
    ],
)
def test_the_banner_counts_what_failed(index, count, words):
    text = corpus.banner({**index.info(), "failures": count})
    assert "**12 images** embedded once at full size by **tiny**" in text
    assert text.endswith(words)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (164_000_000, "164 MB"),
        (2_500_000_000, "2.5 GB"), (7_000_000_000_000, "7 TB"),
    ],
)  # fmt: skip
def test_sizes_are_written_as_people_read_them(count, text):
    assert corpus.bytes_in_words(count) == text


@pytest.mark.parametrize(("count", "pages"), [(0, 0), (1, 1), (20, 1), (21, 2), (100, 5)])
def test_every_failure_is_on_exactly_one_page(count, pages):
    listed = failures(count)
    assert corpus.pages(listed) == pages
    shown = [
        name for page in range(1, pages + 1) for name in corpus.failures_table(listed, page).image
    ]
    assert shown == [failure.path for failure in listed]


def test_a_failure_is_shown_with_its_reason(index):
    (row,) = corpus.failures_table(index.failures, 1).to_dict("records")
    assert row["image"] == "apple/bad.jpg"
    assert row["error"] == "UnidentifiedImageError"
    assert row["reason"].startswith("not a readable image")


def test_a_sample_is_of_the_index_and_the_same_for_the_same_seed(index):
    first = corpus.sample(index, 5, seed=1)
    assert first == corpus.sample(index, 5, seed=1)
    assert len(set(first)) == 5
    assert set(first) <= set(index.ids.tolist())
    assert sorted(corpus.sample(index, 99, seed=1)) == sorted(index.ids.tolist())


def test_two_visitors_who_build_the_demo_at_once_build_it_once(
    tiny_model, photo_folder, tmp_path, monkeypatch
):
    builds: list[Path] = []
    second = Thread(target=corpus._build, args=(tmp_path,))

    def small_demo(model, out, images, *, progress):
        builds.append(out)
        if not second.ident:
            second.start()
            second.join(0.2)
            assert second.is_alive()  # it waits
        ImageIndex.build(tiny_model, Corpus.open(photo_folder), out / "demo.index")

    monkeypatch.setattr(corpus, "run_demo", small_demo)
    corpus._build(tmp_path)
    second.join()
    assert builds == [tmp_path]
    assert len(ImageIndex.open(tmp_path / "demo.index")) == 12


def test_a_build_that_failed_leaves_the_way_free_for_the_next(tmp_path, monkeypatch):
    def full_disk(model, out, images, *, progress):
        raise OSError("no space left")

    monkeypatch.setattr(corpus, "run_demo", full_disk)
    for _ in range(2):
        with pytest.raises(OSError, match="no space left"):
            corpus._build(tmp_path)


def test_a_build_that_was_stopped_is_no_index(tiny_model, photo_folder, tmp_path, monkeypatch):
    path = tmp_path / "i.index"
    assert not is_built(path)
    monkeypatch.setattr("indexing.write.merge_build", None)  # stops when all is stored
    with pytest.raises(TypeError):
        ImageIndex.build(tiny_model, Corpus.open(photo_folder), path)
    assert (path / "manifest.json").exists()
    assert not is_built(path)
    monkeypatch.undo()
    ImageIndex.build(tiny_model, Corpus.open(photo_folder), path)
    assert is_built(path)
    (path / "manifest.json").write_text("{")
    assert is_built(path)  # what is wrong with it is told, and nothing is replaced
