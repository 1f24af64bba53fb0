"""Where sizes disagree, and what is left without queries that have a near-duplicate: by NumPy.

Mutants: a query that is its own twin; the figures of all queries told for those without twins; a
size that gains sorted as if it lost; queries of no class among the classes.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from indexing import Corpus, ImageIndex
from matvit import load_encoder
from matvit.embedding import embed
from retrieval import Retriever, evaluate, evaluate_queries

SIZES = ["S", "M", "XL"]
COPIES = ("a/00.bmp", "b/04.bmp", "c/08.bmp", "a/12.bmp")
K = 3


@pytest.fixture(scope="module")
def place(tiny_model, tmp_path_factory):
    """Thirty images of three classes; of four of them the queries hold a copy, saved anew."""
    folder = tmp_path_factory.mktemp("disagree")
    rng = np.random.default_rng(0)
    for number in range(42):
        pixels = rng.integers(0, 256, (16, 16, 3)) // 3 + 50 * (number % 3)
        into = folder / ("photos" if number < 30 else "queries") / "abc"[number % 3]
        into.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(into / f"{number:02}.png")
    for number in (0, 4, 8, 12):
        name = f"{'abc'[number % 3]}/{number:02}"
        with Image.open(folder / "photos" / f"{name}.png") as image:
            image.save(folder / "queries" / f"{name}.bmp")
    shutil.copy(folder / "photos/a/03.png", folder / "queries/a/03.png")  # itself, not a twin
    (folder / "queries/a/broken.png").write_text("text")
    tiny_model.save(folder / "encoder")
    ImageIndex.build(tiny_model, Corpus.open(folder / "photos"), folder / "i")
    return folder


@pytest.fixture(scope="module")
def retriever(place):
    """With the encoder that the command loads, so that both round alike."""
    return Retriever(load_encoder(place / "encoder"), ImageIndex.open(place / "i"))


@pytest.fixture(scope="module")
def nearly_same(retriever, place):
    """A cosine that the copies among the queries reach, and no other query."""
    names, _, _, cosines = oracle(retriever, place, "XL")
    nearest = dict(zip(names, cosines.max(axis=1), strict=True))
    copies = [nearest.pop(name) for name in COPIES]
    assert min(copies) > max(nearest.values())
    return (min(copies) + max(nearest.values())) / 2


@pytest.fixture(autouse=True)
def told_apart(nearly_same, monkeypatch):
    monkeypatch.setattr("retrieval.evaluation.NEARLY_SAME", nearly_same)


@pytest.fixture
def found(retriever, place):
    queries = Corpus.open(place / "queries")
    return evaluate_queries(retriever, queries, SIZES, K, latency_queries=0)


def oracle(retriever, place, submodel):
    """Of each query: average precision at R, and its three nearest rows, itself left out."""
    index, model = retriever.index, retriever.encoder
    paths = sorted(
        (path for path in (place / "queries").rglob("*.*") if "broken" not in path.name),
        key=lambda path: path.relative_to(place / "queries").as_posix(),
    )
    pixels = np.stack([model.preprocess.pixels(path) for path in paths])
    cosines = embed(model, pixels, model.submodel(submodel)) @ index.embeddings[:].T
    values, nearest = [], []
    for at, path in enumerate(paths):
        own = [row for row, name in enumerate(index.paths) if name == "a/03.png"]
        if path.name == "03.png":
            cosines[at, own] = -np.inf
        order = np.argsort(-cosines[at], kind="stable")
        right = np.array([index.paths[row][0] == path.parent.name for row in order])
        right &= np.isfinite(cosines[at, order])
        total = right.sum()
        hits = np.flatnonzero(right[:total])
        values.append(sum((n + 1) / (hit + 1) for n, hit in enumerate(hits)) / total)
        nearest.append(order[:K])
    names = [path.relative_to(place / "queries").as_posix() for path in paths]
    return names, np.array(values), np.array(nearest), cosines


def test_queries_are_sorted_by_what_a_size_loses(retriever, place, found):
    names, full, best, _ = oracle(retriever, place, "XL")
    assert found.metric == "map@r"
    for size in ("S", "M"):
        _, reached, rows, _ = oracle(retriever, place, size)
        listed = found.disagreements(size)
        assert [each.lost for each in listed] == pytest.approx(
            np.sort(full - reached)[::-1], abs=1e-9
        )
        for each in listed:
            at = names.index(each.path)
            assert (each.full, each.reached) == pytest.approx((full[at], reached[at]))
            assert each.label == each.path[0]
            assert each.overlap == pytest.approx(len(set(rows[at]) & set(best[at])) / K)
        labels = np.array([name[0] for name in names])
        wanted = {label: (full - reached)[labels == label].mean() for label in sorted(set(labels))}
        by_class = found.by_class(size)
        assert {each.label: each.lost for each in by_class} == pytest.approx(wanted)
        assert [each.lost for each in by_class] == sorted(wanted.values(), reverse=True)
    assert found.smaller == ["S", "M"]
    assert [failure.path for failure in found.failures] == ["a/broken.png"]


def test_queries_with_a_near_duplicate_are_counted_and_left_out(retriever, place, found):
    names, full, _, _ = oracle(retriever, place, "XL")
    twins = np.array([name in COPIES for name in names])
    assert found.twins.tolist() == twins.tolist()
    assert found.frontier.conditions.twins == twins.sum()
    assert found.without_twins.point_of("XL").map_at_r == pytest.approx(full[~twins].mean())
    assert found.frontier.point_of("XL").map_at_r == pytest.approx(full.mean())
    for size in ("S", "M"):
        _, reached, _, _ = oracle(retriever, place, size)
        assert found.without_twins.point_of(size).map_at_r == pytest.approx(reached[~twins].mean())
        assert found.without_twins.point_of(size).queries == (~twins).sum()


def test_without_labels_they_are_sorted_by_the_overlap(retriever, place):
    queries = Corpus.open(place / "queries").without_labels()
    found = evaluate_queries(retriever, queries, SIZES, K, latency_queries=0)
    _, _, best, _ = oracle(retriever, place, "XL")
    _, _, rows, _ = oracle(retriever, place, "S")
    overlap = [len(set(a) & set(b)) / K for a, b in zip(rows, best, strict=True)]
    listed = found.disagreements("S")
    assert found.metric == f"overlap@{K}"
    assert [each.lost for each in listed] == pytest.approx(sorted(1 - np.array(overlap))[::-1])
    assert found.by_class("S") == []


def test_evaluate_tells_the_same_frontier(retriever, place, found):
    queries = Corpus.open(place / "queries")
    assert evaluate(retriever, queries, SIZES, K, latency_queries=0) == found.frontier


def test_the_command_lists_disagreements_and_writes_one_page(matvit, place, found, tmp_path):
    ask = (
        "evaluate", place / "i", "--queries", place / "queries", "-k", K, "--submodels", "S,M",
        "--encoder", place / "encoder",
    )  # fmt: skip
    page = tmp_path / "e.html"
    code, out, _ = matvit(*ask, "--disagreements", "--json", "--html", page)
    assert code == 3  # one could not be read
    rows = [json.loads(line) for line in out.splitlines()]
    expected = [each for size in ("S", "M") for each in found.disagreements(size)]
    assert [(row["submodel"], row["query"]) for row in rows] == [
        (each.submodel, each.path) for each in expected
    ]
    assert [row["lost"] for row in rows] == pytest.approx([each.lost for each in expected])
    text = page.read_text()
    for said in ("Where S loses most", "a/broken.png", "<svg", "near-duplicate in the index"):
        assert said in text
    assert text.count("<img ") == text.count('src="data:image/jpeg;base64,') > 0
    code, out, _ = matvit(*ask, "--json")
    point = json.loads(out.splitlines()[0])
    assert point["without_twins"]["queries"] == int((~found.twins).sum())
    assert point["without_twins"]["map@r"] == pytest.approx(
        found.without_twins.point_of("S").map_at_r
    )
    code, out, _ = matvit(*ask)
    assert f"{found.twins.sum()} of {len(found.twins)} queries have a near-duplicate" in out
