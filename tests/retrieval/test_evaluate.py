"""Evaluation against a slow version written with lists and sets, and against scikit-learn.

Mutants these tests must catch: classes matched by number instead of by name; a query that is in
the index counted among its own hits, or its copy; relevant images counted with the query itself;
MAP@R over k ranks only; overlap with the submodel's own answers; the last batch of queries lost.
"""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from indexing import Corpus, ImageIndex
from matvit.cost import count_macs, count_params
from matvit.embedding import embed
from matvit.extraction import extract
from matvit.mixes import mix_n_match
from matvit.torch_runtime import cpu_has_bfloat16
from retrieval import Retriever, evaluate, evaluation

K = 5


def write_images(root, classes, number, seed):
    """Write noise images in the colours of their classes, and return the folder."""
    rng = np.random.default_rng(seed)
    for place in range(number):
        name = classes[place % len(classes)]
        colour = np.random.default_rng(sum(name.encode())).integers(0, 200, 3)
        pixels = (colour + rng.integers(0, 56, (20, 20, 3))).astype(np.uint8)
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name / f"{seed}-{place:02}.png")
    return root


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / "photos", ["apple", "bread", "cheese", "dill"], 22, seed=0)


@pytest.fixture
def questions(tmp_path):
    """Queries with other class numbers than the index, and a class that it does not have."""
    return write_images(tmp_path / "questions", ["bread", "dill", "apple", "zebra"], 14, seed=1)


@pytest.fixture
def retriever(tiny_model, photos, tmp_path):
    index = ImageIndex.build(tiny_model, Corpus.from_folder(photos), tmp_path / "index")
    return Retriever(tiny_model, index)


def measure(retriever, queries, submodels=("S", "XL"), **options):
    """Evaluate without timing, as a dictionary by submodel."""
    corpus = Corpus.from_folder(queries)
    frontier = evaluate(retriever, corpus, submodels, K, latency_queries=0, **options)
    return {point.submodel: point for point in frontier}, frontier.conditions


def slow_answers(retriever, queries, submodel):
    """For each query: class, names of all other images by falling score, and their classes."""
    index = retriever.index
    paths = sorted(queries.glob("*/*.png"))
    pixels = np.stack([retriever.encoder.preprocess.pixels(path) for path in paths])
    stored = index.embeddings[:].astype(np.float64)
    for path, vector in zip(paths, embed(retriever.encoder, pixels, submodel), strict=True):
        order = np.argsort(-(stored @ vector.astype(np.float64)), kind="stable")
        own = path.read_bytes()
        others = [row for row in order.tolist() if index.image_bytes(row) != own]
        names = [index.paths[row] for row in others]
        yield path.parent.name, names, [name.split("/")[0] for name in names]


def slow_metrics(retriever, queries, submodel):
    """Hit rate at 1, recall at K, MAP@R and overlap, averaged by hand."""
    hits, shares, precisions, overlaps = [], [], [], []
    full = list(slow_answers(retriever, queries, "XL"))
    for (wanted, names, classes), (_, reference, _) in zip(
        slow_answers(retriever, queries, submodel), full, strict=True
    ):
        overlaps.append(len(set(names[:K]) & set(reference[:K])) / len(reference[:K]))
        total = classes.count(wanted)
        if total:
            hits.append(classes[0] == wanted)
            shares.append(classes[:K].count(wanted) / total)
            at = [
                classes[:rank].count(wanted) / rank
                for rank in range(1, total + 1)
                if classes[rank - 1] == wanted
            ]
            precisions.append(sum(at) / total)
    return [float(np.mean(values)) for values in (hits, shares, precisions, overlaps)]


def quality(point):
    return [point.hit_rate_at_1, point.recall_at_k, point.map_at_r, point.overlap_at_k]


@pytest.mark.parametrize("submodel", ["S", "1xS,1xXL", "XL"])
def test_metrics_equal_the_slow_version(retriever, questions, submodel):
    points, _ = measure(retriever, questions, [submodel])
    assert quality(points[submodel]) == pytest.approx(
        slow_metrics(retriever, questions, submodel)
    )  # fmt: skip


def test_the_metrics_of_the_slow_version_are_neither_zero_nor_one(retriever, questions):
    assert all(0 < value < 1 for value in slow_metrics(retriever, questions, "S"))


def test_queries_that_are_in_the_index_never_find_themselves(retriever, photos):
    points, conditions = measure(retriever, photos)
    assert quality(points["S"]) == pytest.approx(slow_metrics(retriever, photos, "S"))
    assert conditions.in_index == 22


def test_hit_rate_of_the_index_itself_is_leave_one_out_accuracy(retriever, photos):
    index = retriever.index
    neighbours = NearestNeighbors(metric="cosine").fit(index.embeddings[:])
    nearest = neighbours.kneighbors(n_neighbors=1, return_distance=False)[:, 0]
    expected = np.mean(index.labels[nearest] == index.labels)
    points, _ = measure(retriever, photos, [])
    assert points["XL"].hit_rate_at_1 == pytest.approx(expected)


def test_copies_of_a_query_in_the_index_are_not_hits_either(tiny_model, photos, tmp_path):
    original = sorted((photos / "apple").iterdir())[0]
    shutil.copy(original, photos / "bread" / "copy.png")
    shutil.copy(original, photos / "apple" / "copy.png")
    index = ImageIndex.build(tiny_model, Corpus.from_folder(photos), tmp_path / "with-copies")
    retriever = Retriever(tiny_model, index)
    points, conditions = measure(retriever, photos)
    assert quality(points["S"]) == pytest.approx(slow_metrics(retriever, photos, "S"))
    assert conditions.in_index == conditions.queries == 24


def test_the_full_encoder_is_always_measured_and_retains_everything(retriever, questions):
    points, _ = measure(retriever, questions, ["S"])
    assert list(points) == ["S", "XL"]
    assert points["XL"].overlap_at_k == 1
    assert points["XL"].retained_hit_rate_at_1 == 1
    assert points["XL"].macs_fraction == 1


def test_retained_is_relative_to_the_full_encoder(retriever, questions):
    points, _ = measure(retriever, questions)
    small, full = points["S"], points["XL"]
    assert small.retained_hit_rate_at_1 == small.hit_rate_at_1 / full.hit_rate_at_1
    assert small.recall == small.retained_hit_rate_at_1


def test_cost_is_that_of_the_submodel(retriever, questions):
    points, _ = measure(retriever, questions, ["M"])
    model = retriever.encoder
    macs = [count_macs(model.config, model.submodel(size)) for size in ("M", "XL")]
    assert points["M"].macs == macs[0]
    assert points["M"].macs_fraction == macs[0] / macs[1]
    assert points["M"].params == count_params(model.config, model.submodel("M"))


def test_every_distinct_submodel_is_measured_once(retriever, questions):
    submodels = mix_n_match(retriever.encoder.config)
    points, _ = measure(retriever, questions, [*submodels, "S", "2xXL", None])
    assert set(points) == {str(submodel) for submodel in submodels}


def test_batches_make_no_difference(retriever, questions, monkeypatch):
    def embed_one_by_one(encoder, pixels, submodel):
        # In batches of another size the last bit may differ, and with it the order of the hits.
        return np.concatenate(
            [embed(encoder, pixels[[row]], submodel) for row in range(len(pixels))]
        )

    monkeypatch.setattr(evaluation, "embed", embed_one_by_one)
    whole = measure(retriever, questions)
    monkeypatch.setattr(evaluation, "_QUERIES_PER_BATCH", 3)
    assert measure(retriever, questions) == whole


def test_batches_shrink_where_answers_are_long(retriever, questions, monkeypatch):
    sizes = []
    decode = Corpus.decode

    def watched(corpus, preprocess, decoders):
        sizes.append(decoders.batch_size)
        return decode(corpus, preprocess, decoders)

    monkeypatch.setattr(Corpus, "decode", watched)
    monkeypatch.setattr(evaluation, "_CELLS_PER_TABLE", 30)
    measure(retriever, questions)
    assert sizes == [5]  # the largest class has 6 images


def test_without_labels_only_overlap_is_measured(retriever, questions, tmp_path):
    (tmp_path / "flat").mkdir()
    for path in questions.glob("*/*.png"):
        shutil.copy(path, tmp_path / "flat")
    points, conditions = measure(retriever, tmp_path / "flat")
    assert quality(points["S"])[:3] == [None, None, None]
    assert points["S"].retained_hit_rate_at_1 is None
    assert points["S"].metric == "overlap@5"
    assert points["S"].overlap_at_k == pytest.approx(slow_metrics(retriever, questions, "S")[3])
    assert conditions.without_relevant is None


def test_queries_of_unknown_classes_are_left_out_and_counted(retriever, questions, tmp_path):
    _, conditions = measure(retriever, questions)
    assert conditions.without_relevant == 3  # the zebras
    assert (conditions.queries, conditions.images) == (14, 22)
    strangers = write_images(tmp_path / "strangers", ["zebra", "yak"], 4, seed=2)
    points, conditions = measure(retriever, strangers)
    assert points["S"].hit_rate_at_1 is None
    assert conditions.without_relevant == 4


def test_unreadable_queries_are_left_out_and_counted(retriever, questions):
    expected, _ = measure(retriever, questions)
    (questions / "apple" / "broken.png").write_bytes(b"not an image")
    points, conditions = measure(retriever, questions)
    assert (conditions.queries, conditions.unreadable) == (14, 1)
    assert points == expected


def test_k_may_be_larger_than_the_index(retriever, photos):
    corpus = Corpus.from_folder(photos)
    frontier = evaluate(retriever, corpus, ["S"], 50, latency_queries=0)
    assert [point.overlap_at_k for point in frontier] == [1, 1]
    assert [point.recall_at_k for point in frontier] == [1, 1]


def test_speed_is_measured_unless_it_is_not_wanted(retriever, questions):
    corpus = Corpus.from_folder(questions)
    for point in evaluate(retriever, corpus, ["S"], K, latency_queries=20):
        assert 0 < point.latency_ms_p50 <= point.latency_ms_p95
        assert point.images_per_s > 0
    for point in evaluate(retriever, corpus, ["S"], K, latency_queries=0):
        assert (point.latency_ms_p50, point.latency_ms_p95, point.images_per_s) == (None,) * 3


def test_conditions_name_the_encoder_and_the_machine(retriever, questions):
    _, conditions = measure(retriever, questions)
    assert conditions.encoder == "tiny"
    assert conditions.fingerprint == retriever.encoder.fingerprint
    assert conditions.weights == retriever.encoder.weights_fingerprint
    assert conditions.device.startswith("cpu, ")
    mixed = "bfloat16, single images float32"
    assert conditions.precision == (mixed if cpu_has_bfloat16() else "float32")


def test_progress_goes_to_stderr(retriever, questions, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    evaluate(retriever, Corpus.from_folder(questions), ["S"], K, latency_queries=1, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "evaluating" in shown.err
    assert "28/28" in shown.err
    measure(retriever, questions)
    assert capsys.readouterr().err == ""


def test_numbers_that_cannot_be_are_refused(retriever, questions):
    corpus = Corpus.from_folder(questions)
    with pytest.raises(ValueError, match="at least 0, got 0 and 50"):
        evaluate(retriever, corpus, ["S"], 0)
    with pytest.raises(ValueError, match="latency_queries at least 0, got 10 and -1"):
        evaluate(retriever, corpus, ["S"], latency_queries=-1)


def test_queries_that_all_fail_are_an_error(retriever, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"none of the 1 queries could be read; broken\.png: not"):
        measure(retriever, tmp_path / "bad")


def test_an_index_of_nothing_but_the_query_is_an_error(tiny_model, tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "one" / "red.png")
    index = ImageIndex.build(tiny_model, Corpus.from_folder(tmp_path / "one"), tmp_path / "index")
    with pytest.raises(ValueError, match="the index holds only the image that is asked with"):
        measure(Retriever(tiny_model, index), tmp_path / "one")


def test_an_extracted_submodel_cannot_be_evaluated(retriever, tiny_model, questions):
    phone = Retriever(extract(tiny_model, tiny_model.submodel("S")), retriever.index)
    with pytest.raises(ValueError, match="extracted submodel S; evaluate with the whole encoder"):
        measure(phone, questions)
