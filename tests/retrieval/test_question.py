"""Asking with several images, with stored ones, and saying what may answer.

Expected hits are worked out by NumPy from the stored vectors. Mutants: negatives that count in
full; a mean of vectors that are no unit vectors; a stored image that is encoded, or counted; an
image of which a copy is among its own hits; a collapsed hit that takes the place of another.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from photo_index import tune

from indexing import Corpus, ImageIndex, Where
from matvit.cost import count_macs
from matvit.embedding import embed
from retrieval import AutoRetriever, Retriever, Stored, Together, Tuning, Wish
from retrieval.question import Question


@pytest.fixture(scope="module")
def retriever(tiny_model, shared_photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    shutil.copytree(shared_photos, folder / "photos")
    shutil.copy(folder / "photos/apple/00.png", folder / "photos/bread/copy.png")
    return Retriever(
        tiny_model, ImageIndex.build(tiny_model, Corpus.open(folder / "photos"), folder / "i")
    )


@pytest.fixture(scope="module")
def photos(retriever):
    return retriever.index.path.parent / "photos"


def vector_of(retriever, path, submodel="XL"):
    encoder = retriever.encoder
    return embed(encoder, encoder.preprocess.pixels(path)[None], encoder.submodel(submodel))[0]


def ranked(retriever, scores) -> list[str]:
    order = np.argsort(-scores, kind="stable")
    return [retriever.index.paths[row] for row in order]


def paths_of(hits) -> list[str]:
    return [hit.path for hit in hits]


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_a_stored_image_is_asked_with_its_own_vector_and_costs_nothing(retriever):
    stored = Stored.named(retriever.index, "cheese/05.png")
    hits = retriever.search(stored, "S", k=13)
    row = retriever.index.paths.index("cheese/05.png")
    scores = retriever.index.embeddings[:] @ unit(retriever.index.embeddings[row : row + 1][0])
    assert paths_of(hits) == ranked(retriever, scores)
    assert [hit.score for hit in hits] == pytest.approx(np.sort(scores)[::-1], abs=1e-5)
    assert (hits.query, hits.submodel, hits.macs) == ("cheese/05.png", "XL", 0)
    assert (hits.encode_ms, hits.encoded) == (0, 0)
    assert hits.to_dict()["encoded"] == 0


def test_a_name_or_id_that_is_not_there_is_an_error(retriever):
    with pytest.raises(ValueError, match="has no image 'cheese/99.png'"):
        Stored.named(retriever.index, "cheese/99.png")
    with pytest.raises(KeyError, match="no image with id 99"):
        retriever.search(Stored(99))


@pytest.mark.parametrize("submodel", ["S", "XL"])
def test_the_mean_of_unit_vectors_less_half_of_what_is_not_wanted(retriever, photos, submodel):
    like = (photos / "apple/00.png", Stored.named(retriever.index, "bread/04.png"))
    unlike = (photos / "cheese/02.png", photos / "cheese/08.png")
    hits = retriever.search(Together(like=like, unlike=unlike), submodel, k=13)
    index = retriever.index
    stored = index.embeddings[:]
    positive = [vector_of(retriever, like[0], submodel), stored[index.paths.index("bread/04.png")]]
    negative = [vector_of(retriever, path, submodel) for path in unlike]
    wanted = np.mean([unit(v) for v in positive], axis=0)
    wanted = wanted - 0.5 * np.mean([unit(v) for v in negative], axis=0)
    scores = stored @ unit(wanted)
    assert [hit.score for hit in hits] == pytest.approx(np.sort(scores)[::-1], abs=0.01)
    assert set(paths_of(hits[:4])) == set(ranked(retriever, scores)[:4])
    config = retriever.encoder.config
    assert hits.encoded == 3
    assert hits.macs == 3 * count_macs(config, retriever.encoder.submodel(submodel))
    assert hits.submodel == submodel
    assert hits.query == f"{like[0]} + bread/04.png - {unlike[0]} - {unlike[1]}"


def test_a_mean_of_stored_images_is_exactly_what_numpy_says(retriever):
    index, names = retriever.index, ("apple/03.png", "bread/07.png", "cheese/11.png")
    first, second, third = (Stored.named(index, name) for name in names)
    hits = retriever.search(Together(like=(first, second), unlike=(third,)), k=13)
    a, b, c = (unit(index.embeddings[:][index.paths.index(name)]) for name in names)
    scores = index.embeddings[:] @ unit((a + b) / 2 - c / 2)
    assert paths_of(hits) == ranked(retriever, scores)
    assert [hit.score for hit in hits] == pytest.approx(np.sort(scores)[::-1], abs=1e-5)


@pytest.mark.parametrize("k", [1, 3, 13])
def test_the_best_of_several_leaves_out_what_is_nearer_to_what_is_not_wanted(retriever, k):
    index, names = retriever.index, ("apple/03.png", "bread/07.png", "cheese/11.png")
    first, second, third = (Stored.named(index, name) for name in names)
    asked = Together(like=(first, second), unlike=(third,), by="best")
    hits = retriever.search(asked, k=k)
    stored = index.embeddings[:]
    a, b, c = (stored @ unit(stored[index.paths.index(name)]) for name in names)
    scores = np.where(np.maximum(a, b) >= c, np.maximum(a, b), -np.inf)
    expected = ranked(retriever, scores)[: min(k, int(np.isfinite(scores).sum()))]
    assert paths_of(hits) == expected
    assert [hit.score for hit in hits] == pytest.approx(
        np.sort(scores)[::-1][: len(expected)], abs=2e-3
    )


def test_images_that_cancel_each_other_out_are_refused(retriever):
    same = Stored(0)
    vectors = retriever.index.embeddings[:1]
    opposite = Question(np.concatenate([vectors, -vectors]), vectors[:0], "mean")
    with pytest.raises(ValueError, match="cancel each other out"):
        _ = opposite.vector
    with pytest.raises(ValueError, match="at least one image"):
        Together(like=(), unlike=(same,))
    with pytest.raises(ValueError, match="by mean or by best, not by 'sum'"):
        Together(like=(same,), by="sum")


@pytest.mark.parametrize("asked", ["file", "bytes", "stored"])
def test_who_asks_is_left_out_and_so_are_its_copies(retriever, photos, asked):
    path = photos / "apple/00.png"
    image = {
        "file": path,
        "bytes": path.read_bytes(),
        "stored": Stored.named(retriever.index, "apple/00.png"),
    }[asked]
    everything = retriever.search(image, k=13)
    assert set(paths_of(everything[:2])) == {"apple/00.png", "bread/copy.png"}
    hits = retriever.search(image, k=11, wish=Wish(exclude_self=True))
    assert paths_of(hits) == paths_of(everything[2:])
    assert [hit.rank for hit in hits] == list(range(1, 12))
    few = retriever.search(image, k=3, wish=Wish(exclude_self=True))
    assert paths_of(few) == paths_of(everything[2:5])


def test_twins_are_shown_once_and_others_move_up(retriever):
    stored = Stored.named(retriever.index, "apple/00.png")
    everything = retriever.search(stored, k=13)
    hits = retriever.search(stored, k=4, wish=Wish(collapse=0.99999))
    assert paths_of(hits) == [everything[0].path, *paths_of(everything[2:5])]
    assert [hit.twins for hit in hits] == [1, 0, 0, 0]
    assert hits.to_dict()["hits"][0]["twins"] == 1
    assert "twins" not in hits.to_dict()["hits"][1]
    assert len(retriever.search(stored, k=13, wish=Wish(collapse=-1))) == 1
    with pytest.raises(ValueError, match=r"within -1\.\.1, got 2"):
        Wish(collapse=2)


def test_some_are_left_out_by_id(retriever):
    everything = retriever.search(Stored(0), k=13)
    gone = (everything[0].id, everything[3].id)
    hits = retriever.search(Stored(0), k=13, wish=Wish(leave_out=gone))
    assert [hit.id for hit in hits] == [hit.id for hit in everything if hit.id not in gone]
    with pytest.raises(KeyError, match="no image with id 99"):
        retriever.search(Stored(0), wish=Wish(leave_out=(99,)))


def test_wishes_go_together(retriever, photos):
    wish = Wish(where=Where(inside=("apple", "bread")), exclude_self=True, collapse=0.99999)
    stored = Stored.named(retriever.index, "cheese/02.png")
    hits = retriever.search(Together(like=(photos / "apple/00.png", stored)), k=13, wish=wish)
    index = retriever.index
    vectors = index.embeddings[:]
    asked = unit(vector_of(retriever, photos / "apple/00.png")) + unit(
        vectors[index.paths.index("cheese/02.png")]
    )
    ordered = ranked(retriever, vectors @ unit(asked))
    left_out = ("apple/00.png", "bread/copy.png")
    expected = [p for p in ordered if p.startswith(("apple", "bread")) and p not in left_out]
    assert sorted(paths_of(hits)) == sorted(expected)
    assert paths_of(hits)[0] == expected[0]


def test_a_cut_off_keeps_what_reaches_it(retriever):
    hits = retriever.search(Stored(0), k=13)
    middle = hits[6].score
    assert len(hits.at_least(middle)) == sum(hit.score >= middle for hit in hits)
    assert len(hits.at_least(1.5)) == 0
    assert hits.at_least(-1) == hits


def test_auto_takes_filters_and_stored_images_but_not_several(retriever, photos, tmp_path):
    index = ImageIndex.build(retriever.encoder, Corpus.open(photos), tmp_path / "i")
    tune(type("Opened", (), {"retriever": Retriever(retriever.encoder, index), "index": index}))
    auto = AutoRetriever(Retriever(retriever.encoder, index), Tuning.of(index, retriever.encoder))
    path = photos / "apple/00.png"
    wish = Wish(where=Where(inside=("apple", "bread")), exclude_self=True)
    hits = auto.search(path, k=5, wish=wish)
    full = retriever.search(path, k=5, wish=wish)  # of which no query of this tuning is sure
    assert paths_of(hits) == paths_of(full)
    assert [step.submodel for step in hits.steps] == ["S", "XL"]
    few = auto.search_batch([path, path], k=9, wish=Wish(where=Where(labels=("bread",))))
    assert [len(each) for each in few] == [5, 5]
    stored = auto.search(Stored(0), k=3, wish=Wish(exclude_self=True))
    assert (stored.macs, stored.steps) == (0, ())
    assert not {"apple/00.png", "bread/copy.png"} & set(paths_of(stored))
    with pytest.raises(ValueError, match="several together need a submodel"):
        auto.search(Together(like=(Stored(0), Stored(1))))
