"""The proposed cut-off: by hand on a few scores, and by NumPy on an index.

Mutants: a wrong hit that reaches the cut-off exactly and is not counted; one cut-off told with
the queries that chose it; the image a query was made from taken for a wrong one.
"""

from __future__ import annotations

import numpy as np
import pytest

from indexing import Corpus, ImageIndex
from matvit.embedding import embed
from retrieval import Retriever
from retrieval.tuning.cutoff import Scores, best_scores, choose_cutoff
from retrieval.tuning.sample import draw_sample
from retrieval.tuning.tuner import tune


def scores(right, wrong) -> Scores:
    return Scores(np.array(right, dtype=float), np.array(wrong, dtype=float))


CHOOSING = scores([0.9] * 10, np.linspace(0.1, 1.0, 10))  # 0.1, 0.2, ... 1.0
OTHERS = scores([0.95, 0.85, 0.7, np.nan, -np.inf], [0.2, 0.8001, 0.9, 0.8, -np.inf])


@pytest.mark.parametrize(
    ("allowed", "score", "false_accepts", "kept"),
    [
        (0.2, 0.8001, 2 / 5, 2 / 4),  # two of ten may: 0.9 and 1.0, so just above 0.8
        (0.25, 0.8001, 2 / 5, 2 / 4),
        (0.5, 0.5001, 3 / 5, 3 / 4),
        (0.05, 1.0, 0.0, 0.0),  # none of ten may: no score is above 1
    ],
)
def test_the_lowest_cut_off_that_lets_few_wrong_ones_through(allowed, score, false_accepts, kept):
    found = choose_cutoff(CHOOSING, OTHERS, "label", allowed)
    assert found.min_score == pytest.approx(score, abs=1e-9)
    assert (found.false_accepts, found.kept) == (false_accepts, kept)
    assert (found.queries, found.right, found.max_false_accepts) == (5, "label", allowed)


def test_nothing_is_proposed_where_nothing_is_known():
    assert choose_cutoff(scores([], []), OTHERS, "label") is None
    assert choose_cutoff(CHOOSING, scores([-np.inf], [0.4]), "label") is None


@pytest.fixture(scope="module")
def retriever(tiny_model, tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("cutoff")
    rng = np.random.default_rng(0)
    for number in range(80):
        place = folder / "photos" / "abcd"[number % 4]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 20, 3)) // 4 + 48 * (number % 4)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:02}.png")
    corpus = Corpus.open(folder / "photos")
    return Retriever(tiny_model, ImageIndex.build(tiny_model, corpus, folder / "i"))


@pytest.mark.parametrize("has_labels", [True, False])
def test_right_and_wrong_are_what_numpy_says(retriever, has_labels):
    index = retriever.index
    queries = draw_sample(retriever, size=80).selecting
    vectors = embed(retriever.encoder, queries.pixels)
    found = best_scores(index, queries.wanted, vectors, has_labels=has_labels)
    cosines = vectors @ index.embeddings[:].T
    own = queries.wanted.own[:, 0]
    for at, row in enumerate(own):
        others = np.arange(80) != row
        alike = index.labels == index.labels[row]
        right = cosines[at, others & alike].max() if has_labels else cosines[at, row]
        wrong = cosines[at, others & ~alike if has_labels else others].max()
        assert found.right[at] == pytest.approx(right, abs=1e-5)
        assert found.wrong[at] == pytest.approx(wrong, abs=1e-5)


def test_tuning_proposes_one_and_it_is_read_back(retriever):
    tuning = tune(retriever, size=80, latency=False, max_false_accepts=0.2)
    again = type(tuning).of(retriever.index, retriever.encoder)
    assert again.cutoff == tuning.cutoff
    assert tuning.cutoff.right == "label"
    assert tuning.cutoff.queries == 20
    sample = draw_sample(retriever, size=80)
    vectors = embed(retriever.encoder, sample.reporting.pixels)
    cosines = vectors @ retriever.index.embeddings[:].T
    own = sample.reporting.wanted.own[:, 0]
    labels = retriever.index.labels
    wrong = [cosines[at, labels != labels[row]].max() for at, row in enumerate(own)]
    expected = np.mean(np.array(wrong) >= tuning.cutoff.min_score)
    assert tuning.cutoff.false_accepts == pytest.approx(expected)
    assert "shows" in tuning.cutoff.describe()


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_out_of_range_is_refused(retriever, share):
    with pytest.raises(ValueError, match="max_false_accepts must be above 0 and below 1"):
        tune(retriever, size=80, max_false_accepts=share)
