from __future__ import annotations

import pytest

from app.page import corpus_facts
from indexing import Corpus, Failure, ImageIndex


@pytest.fixture
def index(tiny_model, photo_folder, tmp_path) -> ImageIndex:
    (photo_folder / "apple" / "bad.jpg").write_text("text")
    return ImageIndex.build(tiny_model, Corpus.open(photo_folder), tmp_path / "i.index")


def failures(count: int) -> list[Failure]:
    return [Failure(f"{number}.jpg", "ValueError", "why", number, 1, 1) for number in range(count)]


def test_an_index_is_described(index, photo_folder, tiny_model):
    told = dict(corpus_facts.facts(index.info()))
    assert told["Corpus"] == f"{photo_folder.resolve()} (folder, 13 images)"
    assert told["Encoder"].startswith("tiny, 0.00")
    assert told["Fingerprint of the encoder"] == tiny_model.fingerprint
    assert told["Embeddings"] == "16 numbers each"
    assert told["Search"] == "Flat, exact"
    assert told["Generation"] == "1"
    assert "Removed, not yet compacted" not in told


def test_what_an_index_keeps_without_showing_it_is_told(index):
    index.remove([0, 1])
    told = dict(corpus_facts.facts(index.info()))
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
    text = corpus_facts.banner({**index.info(), "failures": count})
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
    assert corpus_facts.size(count) == text


@pytest.mark.parametrize(("count", "pages"), [(0, 0), (1, 1), (20, 1), (21, 2), (100, 5)])
def test_every_failure_is_on_exactly_one_page(count, pages):
    listed = failures(count)
    assert corpus_facts.pages(listed) == pages
    shown = [
        name
        for page in range(1, pages + 1)
        for name in corpus_facts.failures_table(listed, page).image
    ]
    assert shown == [failure.path for failure in listed]


def test_a_failure_is_shown_with_its_reason(index):
    (row,) = corpus_facts.failures_table(index.failures, 1).to_dict("records")
    assert row["image"] == "apple/bad.jpg"
    assert row["error"] == "UnidentifiedImageError"
    assert row["reason"].startswith("not a readable image")


def test_a_sample_is_of_the_index_and_the_same_for_the_same_seed(index):
    first = corpus_facts.sample(index, 5, seed=1)
    assert first == corpus_facts.sample(index, 5, seed=1)
    assert len(set(first)) == 5
    assert set(first) <= set(index.ids.tolist())
    assert sorted(corpus_facts.sample(index, 99, seed=1)) == sorted(index.ids.tolist())
