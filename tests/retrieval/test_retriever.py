"""Searching: against NumPy over all scores, with every kind of input, from several threads.

Mutants these tests must catch: the submodel ignored; ranks from 0; hits of one query given to
another; the encoder checked at construction only; an answer that depends on what another thread
asks.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from indexing import Corpus, ImageIndex, IndexMismatchError
from matvit.embedding import embed
from matvit.extraction import extract
from matvit.model import MatViT
from matvit.preprocess import Preprocess
from retrieval import Retriever


@pytest.fixture
def index(tiny_model, photo_folder, tmp_path):
    return ImageIndex.build(tiny_model, Corpus.from_folder(photo_folder), tmp_path / "index")


@pytest.fixture
def retriever(tiny_model, index):
    return Retriever(tiny_model, index)


def answer(hits):
    return [(hit.id, hit.score) for hit in hits]


@pytest.mark.parametrize("submodel", ["S", "M", "1xS,1xXL", "XL", None])
def test_search_equals_sorting_all_scores(retriever, photo_folder, submodel):
    query = photo_folder / "bread" / "04.png"
    pixels = np.stack([retriever.encoder.preprocess.pixels(query)])
    vector = embed(retriever.encoder, pixels, submodel)[0].astype(np.float64)
    scores = retriever.index.embeddings[:].astype(np.float64) @ vector
    hits = retriever.search(query, submodel, k=5)
    assert [hit.id for hit in hits] == np.argsort(-scores, kind="stable")[:5].tolist()
    assert [hit.score for hit in hits] == pytest.approx(np.sort(scores)[::-1][:5], abs=1e-5)


def test_a_smaller_submodel_gives_other_scores(retriever, photo_folder):
    query = photo_folder / "bread" / "04.png"
    assert answer(retriever.search(query, "S")) != answer(retriever.search(query, "XL"))


def test_an_indexed_image_finds_itself_first(retriever):
    for path in retriever.index.paths:
        best = retriever.search(retriever.index.image_bytes(retriever.index.paths.index(path)))[0]
        assert (best.rank, best.path) == (1, path)
        assert best.score == pytest.approx(1, abs=2e-3)  # stored as float16


def test_hits_carry_rank_path_and_class_name(retriever, photo_folder):
    hits = retriever.search(photo_folder / "cheese" / "02.png", k=12)
    assert [hit.rank for hit in hits] == list(range(1, 13))
    assert all(hit.path == retriever.index.paths[hit.id] for hit in hits)
    assert all(hit.path.startswith(f"{hit.label}/") for hit in hits)


def test_images_without_classes_have_no_label(tiny_model, tmp_path):
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "flat" / "red.png")
    index = ImageIndex.build(tiny_model, Corpus.from_folder(tmp_path / "flat"), tmp_path / "index")
    assert Retriever(tiny_model, index).search(tmp_path / "flat" / "red.png")[0].label is None


def test_paths_bytes_and_pillow_images_give_the_same_answer(retriever, photo_folder):
    path = photo_folder / "apple" / "00.png"
    expected = answer(retriever.search(path, "S"))
    with Image.open(path) as image:
        assert answer(retriever.search(image, "S")) == expected
    assert answer(retriever.search(path.read_bytes(), "S")) == expected
    assert answer(retriever.search(str(path), "S")) == expected


def test_a_query_is_named_by_its_path_if_it_has_one(retriever, photo_folder):
    path = photo_folder / "apple" / "00.png"
    assert retriever.search(path).query == str(path)
    assert retriever.search(path.read_bytes()).query is None
    assert retriever.search(Image.new("RGB", (20, 20))).query is None
    with Image.open(path) as image:
        assert retriever.search(image).query == str(path)


def test_a_batch_answers_each_query_as_if_it_were_alone(retriever, photo_folder):
    paths = sorted(photo_folder.glob("*/*.png"))
    for path, hits in zip(paths, retriever.search_batch(paths, "M", k=3), strict=True):
        assert hits.query == str(path)
        alone = retriever.search(path, "M", k=3)
        # A batch of another size rounds differently, in bfloat16 by up to 0.004.
        assert [h.score for h in hits] == pytest.approx([h.score for h in alone], abs=0.01)


def test_a_batch_of_no_images_has_no_answers(retriever):
    assert retriever.search_batch([]) == []


def test_k_larger_than_the_index_returns_all(retriever, photo_folder):
    hits = retriever.search(photo_folder / "apple" / "00.png", k=1000)
    assert sorted(hit.id for hit in hits) == list(range(12))


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_an_error(retriever, photo_folder, k):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        retriever.search(photo_folder / "apple" / "00.png", k=k)


def test_json_has_the_documented_shape(retriever, photo_folder):
    path = photo_folder / "apple" / "00.png"
    hits = retriever.search(path, "S", k=2)
    values = hits.to_dict()
    assert list(values) == ["query", "submodel", "macs", "encode_ms", "search_ms", "hits"]
    assert values["hits"] == [
        {"rank": hit.rank, "id": hit.id, "path": hit.path, "score": hit.score} for hit in hits
    ]
    assert [list(hit) for hit in values["hits"]] == [["rank", "id", "path", "score"]] * 2
    assert (values["query"], values["submodel"]) == (str(path), "S")


def test_answers_say_what_they_cost(retriever, photo_folder):
    small, full = (retriever.search(photo_folder / "apple" / "00.png", s) for s in ("S", None))
    assert (small.submodel, full.submodel) == ("S", "XL")
    assert 0 < small.macs < full.macs
    assert min(small.encode_ms, small.search_ms, full.encode_ms, full.search_ms) > 0


def test_hits_are_a_sequence(retriever, photo_folder):
    hits = retriever.search(photo_folder / "apple" / "00.png", k=3)
    assert len(hits) == 3
    assert hits[-1] == list(hits)[2]
    assert hits[:2] == (hits[0], hits[1])


def test_another_encoder_is_refused(index, tiny_model):
    torch.manual_seed(1)
    other = MatViT(tiny_model.config, tiny_model.preprocess, "other")
    with pytest.raises(IndexMismatchError, match="this is other"):
        Retriever(other, index)


def test_another_preprocessing_is_refused(index, tiny_model):
    other = copy.deepcopy(tiny_model)
    other.preprocess = Preprocess(img_size=16, fit="squash")
    with pytest.raises(IndexMismatchError, match="preprocessing"):
        Retriever(other, index)


def test_an_encoder_that_changes_later_is_refused_on_the_next_query(
    index, tiny_model, photo_folder
):
    changing = copy.deepcopy(tiny_model)
    retriever = Retriever(changing, index)
    retriever.search(photo_folder / "apple" / "00.png", "S")
    with torch.no_grad():
        next(changing.parameters()).add_(1)
    with pytest.raises(IndexMismatchError, match="build the index again or load that encoder"):
        retriever.search(photo_folder / "apple" / "00.png", "S")


def test_an_extracted_submodel_asks_the_index_of_its_parent(retriever, tiny_model, photo_folder):
    path = photo_folder / "apple" / "00.png"
    phone = Retriever(extract(tiny_model, tiny_model.submodel("S")), retriever.index)
    hits, expected = phone.search(path, k=12), retriever.search(path, "S", k=12)
    assert hits.submodel == "S"
    assert hits.macs == expected.macs
    # The same weights in another module; bfloat16 may round differently.
    assert [h.score for h in hits] == pytest.approx([h.score for h in expected], abs=0.01)


def test_an_unreadable_query_is_named(retriever, photo_folder):
    (photo_folder / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"broken\.png: not a readable image"):
        retriever.search(photo_folder / "broken.png")
    good = (photo_folder / "apple" / "00.png").read_bytes()
    with pytest.raises(ValueError, match="query 2: not a readable image"):
        retriever.search_batch([good, b"not an image"])


def test_a_missing_query_is_an_error(retriever, photo_folder):
    with pytest.raises(FileNotFoundError, match="no such image"):
        retriever.search(photo_folder / "nowhere.png")


def test_an_unknown_submodel_is_an_error(retriever, photo_folder):
    with pytest.raises(ValueError, match="known sizes: S, M, L, XL"):
        retriever.search(photo_folder / "apple" / "00.png", "XXL")


def test_threads_may_search_with_two_submodels_at_once(retriever, photo_folder):
    paths = sorted(photo_folder.glob("*/*.png"))
    work = [(path, submodel) for path in paths for submodel in ("S", "XL")]
    expected = [answer(retriever.search(*task)) for task in work]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda task: answer(retriever.search(*task)), work))
    assert found == expected


def test_an_image_removed_by_another_thread_meanwhile_is_still_told(
    retriever, photo_folder, monkeypatch
):
    query = photo_folder / "bread" / "04.png"
    expected = answer(retriever.search(query, k=3))
    searching, changed = ImageIndex.search, []

    def removed_meanwhile(index, vectors, k):
        found = searching(index, vectors, k)
        if not changed:
            changed.append(index.remove([int(found[0][0, 0])]))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ImageIndex, "search", removed_meanwhile)
        assert answer(retriever.search(query, k=3)) == expected
    assert answer(retriever.search(query, k=3)) == expected
    (index,) = changed[:1]
    assert expected[0][0] not in index.ids
    assert answer(Retriever(retriever.encoder, index).search(query, k=2)) == expected[1:]
