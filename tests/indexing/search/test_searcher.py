"""Every kind against NumPy: scores, ids, ties, recall, what is stored and what is refused.

Mutants these must catch: scores as FAISS estimates them; row numbers returned for ids; -1 returned
where the visited lists hold too little; an effort measured by queries that find themselves;
float16 candidates cut without regard to their error; a file that FAISS would follow elsewhere.
"""

from __future__ import annotations

import re
import struct
from io import BytesIO

import faiss
import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from vectors import (
    DIM,
    NAME,
    ROWS,
    clustered,
    described,
    flat_searcher,
    sized,
    stored_embeddings,
)

from indexing.search import gpu
from indexing.search.faiss_file import check_layout, read_structure
from indexing.search.kinds import KINDS, Kind, factory_kind, named_kind
from indexing.search.making import make_searcher, read_searcher
from indexing.search.request import Effort
from indexing.store.embeddings import unit_queries
from indexing.store.files import store

FACTORIES = ("HNSW8,SQ8", "SQ8", "IVF16,SQ4")
IVF = ("IVFFlat", "IVFSQ8", "IVFPQ", "IVFRaBitQ")


@pytest.fixture(scope="module")
def ids():
    return np.sort(np.random.default_rng(1).choice(1_000_000, ROWS, replace=False))


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    return stored_embeddings(tmp_path_factory.mktemp("rows"), clustered(ROWS, seed=2))


@pytest.fixture(scope="module", params=[*KINDS, *FACTORIES])
def index(request, embeddings, ids):
    index = make_searcher(embeddings, ids, sized(request.param), seed=3)
    index.kind = sized(request.param)
    return index


def exact_top(embeddings, ids, queries, k):
    """Sort all images by (-score, id) in float64."""
    scores = queries.astype(np.float64) @ embeddings[:].astype(np.float64).T
    return ids[np.argsort(-scores, axis=1, kind="stable")[:, :k]]


def test_calibrated_search_reaches_its_target_on_fresh_queries(index, embeddings, ids):
    queries = clustered(400, seed=4)
    found, _ = index.search(queries, 10)
    exact = exact_top(embeddings, ids, queries, 10)
    recalls = np.array([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])
    margin = 3 * recalls.std() / np.sqrt(len(recalls))  # three standard errors of this sample
    assert recalls.mean() >= 0.95 - margin
    assert index.effort.is_met


def test_scores_are_the_cosines_of_the_stored_embeddings(index, embeddings, ids):
    queries = clustered(50, seed=5)
    found, scores = index.search(queries, 10)
    rows = np.searchsorted(ids, found)
    np.testing.assert_array_equal(ids[rows], found)
    exact = np.einsum("qd,qkd->qk", queries.astype(np.float64), embeddings[:][rows].astype("f8"))
    np.testing.assert_allclose(scores, exact, atol=DIM * 2.0**-24)  # worst rounding of the sum
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (found.dtype, scores.dtype) == (np.int64, np.float32)


def test_score_of_an_image_is_that_of_the_flat_index_to_the_last_bit(index, embeddings, ids):
    queries = clustered(20, seed=6)
    found, scores = index.search(queries, 10)
    flat_ids, flat_scores = flat_searcher(embeddings, ids).search(queries, ROWS)
    for row in range(20):
        expected = dict(zip(flat_ids[row].tolist(), flat_scores[row].tolist(), strict=True))
        assert [expected[image] for image in found[row].tolist()] == scores[row].tolist()


@pytest.mark.parametrize("k", [1, 100, ROWS])
def test_there_are_always_k_different_images(index, ids, k):
    found, scores = index.search(clustered(3, seed=7), k)
    assert all(len(set(row)) == k for row in found.tolist())
    assert np.isin(found, ids).all()
    assert np.isfinite(scores).all()


def test_one_query_is_answered_as_in_a_batch(index):
    queries = clustered(30, seed=8)
    together = index.search(queries, 5)
    for row, query in enumerate(queries):
        for alone, all_of_them in zip(index.search(query[np.newaxis], 5), together, strict=True):
            np.testing.assert_array_equal(alone[0], all_of_them[row])


def test_queries_of_one_search_do_not_sway_each_other(index):
    queries = clustered(900, seed=17)  # more pairs than are scored at a time
    queries[100:200] = queries[0]
    found, scores = index.search(queries, 10)
    assert (found[100:200] == found[0]).all()
    assert (scores[100:200] == scores[0]).all()


@pytest.mark.parametrize("k", [20, 21, 300])
def test_more_images_than_the_device_fetches_are_found_without_it(monkeypatch, embeddings, ids, k):
    index = make_searcher(embeddings, ids, sized("Flat16"))
    monkeypatch.setattr(index.engine, "max_fetch", 20)
    queries = clustered(5, seed=18)
    found, scores = index.search(queries, k)
    expected, values = flat_searcher(embeddings, ids).search(queries, k)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, values)


def test_no_query_finds_nothing(index):
    found, scores = index.search(np.empty((0, DIM), dtype=np.float32), 4)
    assert (found.shape, scores.shape) == ((0, 4), (0, 4))


@pytest.mark.parametrize("mmap", [False, True])
def test_index_is_read_as_it_was_written(tmp_path, index, embeddings, ids, mmap):
    file = store(tmp_path, NAME, ROWS, index.engine.write)
    again = read(tmp_path, file, embeddings, ids, index, mmap=mmap)
    queries = clustered(40, seed=9)
    for k in (1, 10, 300):
        for before, after in zip(index.search(queries, k), again.search(queries, k), strict=True):
            np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(again.ids, ids)


def read(folder, file, embeddings, ids, index, **options):
    record = described(index.kind, file, index.effort)
    return read_searcher(folder, record, embeddings, ids, **options)


def test_same_seed_gives_the_same_answers(index, embeddings, ids):
    again = make_searcher(embeddings, ids, index.kind, seed=3)
    assert again.effort == index.effort
    queries = clustered(40, seed=10)
    for one, other in zip(index.search(queries, 10), again.search(queries, 10), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["Flat", "Flat16"])
@pytest.mark.parametrize("k", [1, 7, 90])
def test_exact_kinds_cut_ties_of_hundreds_at_the_smallest_ids(tmp_path, name, k):
    rng = np.random.default_rng(11)
    rows = rng.choice(np.float32([-0.25, 0.25]), (2, 16))[rng.integers(0, 2, 600)]
    ids = rng.permutation(600)
    found, _ = make_searcher(
        stored_embeddings(tmp_path, rows), ids, named_kind(name, 600, 16)
    ).search(rows[:9], k)
    for query, answer in zip(rows, found, strict=False):
        ranked = sorted((-float(row @ query), image) for row, image in zip(rows, ids, strict=True))
        assert answer.tolist() == [image for _, image in ranked[:k]]


def test_float16_search_is_exact_where_rounding_to_float16_changes_the_order(tmp_path):
    rng = np.random.default_rng(12)
    rows = np.ones(256) + 1e-3 * rng.standard_normal((500, 256))  # scores differ by about 1e-5
    rows = unit_queries(rows, 256)
    embeddings, ids = stored_embeddings(tmp_path, rows), np.arange(500)
    kind = named_kind("Flat16", 500, 256)
    found, scores = make_searcher(embeddings, ids, kind).search(rows[:20], 10)
    expected, values = flat_searcher(embeddings, ids).search(rows[:20], 10)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, values)


@pytest.mark.parametrize("count", [1, 5, 300])
@pytest.mark.parametrize("name", KINDS)
def test_few_images_are_all_found_or_the_kind_says_how_many_it_needs(tmp_path, name, count):
    embeddings, ids = stored_embeddings(tmp_path, clustered(count, seed=13)), np.arange(count)
    least = {"IVFPQ": 256} | dict.fromkeys(("IVFFlat", "IVFSQ8", "IVFRaBitQ"), 39)
    if count < least.get(name, 1):
        with pytest.raises(ValueError, match=f"needs at least {least[name]} images, there are"):
            sized(name, count)
        return
    index = make_searcher(embeddings, ids, sized(name, count))
    found, _ = index.search(clustered(4, seed=14), count)
    assert (np.sort(found, axis=1) == ids).all()


def test_kind_sized_for_more_images_than_there_are_is_refused(embeddings):
    kind = Kind(name="factory", factory="IVF16,Flat")
    with pytest.raises(ValueError, match=r"kind factory \(IVF16,Flat\) needs at least 16 images"):
        make_searcher(embeddings[:5], np.arange(5), kind)


@pytest.mark.parametrize("ids", [np.arange(3), np.array([1, 1, 2, 3]), np.array([-1, 0, 1, 2])])
def test_ids_that_do_not_name_the_rows_are_refused(embeddings, ids):
    with pytest.raises(ValueError, match="4 rows need as many different ids, none negative; got"):
        make_searcher(embeddings[:4], ids, named_kind("Flat", 4, DIM))


def test_target_out_of_reach_uses_the_best_and_says_so(embeddings, ids):
    kind = factory_kind("OPQ2_4,IVF16,PQ2x4", ROWS, DIM)
    chosen = make_searcher(embeddings, ids, kind, target=1.0).effort
    assert (chosen.rescore, chosen.is_met) == (32, False)
    assert "MISSES the target 1" in chosen.describe()


def test_duplicates_do_not_count_as_missed_in_calibration(tmp_path):
    rows = np.repeat(clustered(50, seed=15), 20, axis=0)
    embeddings = stored_embeddings(tmp_path, rows)
    kind = named_kind("IVFFlat", 1_000, DIM)
    chosen = make_searcher(embeddings, np.arange(1_000), kind).effort
    assert (chosen.nprobe, chosen.recall) == (1, 1.0)


@pytest.mark.parametrize("name", ["IVFPQ", "IVFSQ8", "HNSW"])
def test_few_hits_are_those_that_many_would_begin_with(embeddings, ids, name):
    index = make_searcher(embeddings, ids, named_kind(name, ROWS, DIM))
    queries = clustered(64, seed=16)
    many, scores = index.search(queries, 10)
    for k in (1, 3, 9):
        found, its_scores = index.search(queries, k)
        assert (found == many[:, :k]).all()
        assert (its_scores == scores[:, :k]).all()


def test_calibration_survives_json():
    chosen = Effort(nprobe=4, ef_search=0, rescore=2, target=0.9, recall=0.97, queries=512)
    assert msgspec.json.decode(msgspec.json.encode(chosen), type=Effort) == chosen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nprobe": 1.5}, "Expected `int`, got `float` - at `$.nprobe`"),
        ({"recall": 1.5}, "Expected `float` <= 1.0 - at `$.recall`"),
        ({"target": 0.0}, "Expected `float` > 0.0 - at `$.target`"),
        ({"rescore": 0}, "Expected `int` >= 1 - at `$.rescore`"),
        ({"queries": -1}, "Expected `int` >= 0 - at `$.queries`"),
        ({"more": 1}, "Object contains unknown field `more`"),
    ],
)
def test_calibration_that_was_never_written_is_refused(changes, message):
    chosen = Effort(nprobe=4, ef_search=0, rescore=2, target=0.9, recall=0.97, queries=512)
    with pytest.raises(ValueError, match=re.escape(message)):
        msgspec.convert(msgspec.to_builtins(chosen) | changes, Effort)


def test_flipped_bit_is_found_before_faiss_reads_it(tmp_path, monkeypatch, index, embeddings, ids):
    file = store(tmp_path, NAME, ROWS, index.engine.write)
    content = bytearray((tmp_path / NAME).read_bytes())
    content[len(content) // 2] ^= 0x40
    (tmp_path / NAME).write_bytes(content)
    monkeypatch.delattr(faiss, "read_index")
    with pytest.raises(ValueError, match="damaged: its content is not what was written"):
        read(tmp_path, file, embeddings, ids, index)


def test_file_cut_anywhere_is_refused_by_its_layout(tmp_path, index):
    store(tmp_path, NAME, ROWS, index.engine.write)
    path = tmp_path / NAME
    content = path.read_bytes()
    check_layout(path, index.kind)
    for length in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="knn_g1.faiss is damaged: "):
            check_layout(path, index.kind)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="1 bytes follow its end"):
        check_layout(path, index.kind)


@pytest.mark.parametrize(
    "factory",
    ["PCA8,IVF4,Flat", "IVF4_HNSW4,Flat", "IVF4,PQ4x4fs", "Flat", "IDMap2,Flat", "IVF4,Flat,RFlat"],
)
def test_other_faiss_structures_are_not_even_opened(tmp_path, monkeypatch, factory):
    other = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    refuses(tmp_path, monkeypatch, other)


@pytest.mark.parametrize("name", [*KINDS, *FACTORIES])
def test_structure_of_another_kind_is_not_even_opened(tmp_path, monkeypatch, index, name):
    file = store(tmp_path, NAME, ROWS, index.engine.write)
    other = sized(name)
    if _alike(index.kind.factory) == _alike(other.factory):
        read_structure(tmp_path, file, other, DIM, mmap=False)
        return
    monkeypatch.delattr(faiss, "read_index")
    with pytest.raises(ValueError, match=r"knn_g1.faiss is damaged: it holds a structure \["):
        read_structure(tmp_path, file, other, DIM, mmap=False)


def _alike(factory):
    """What two kinds have in common whose files have the same parts, of other sizes."""
    return re.sub(r"\d+|fp16", "", factory)


def test_index_of_another_metric_is_not_even_opened(tmp_path, monkeypatch):
    refuses(tmp_path, monkeypatch, faiss.index_factory(DIM, "IDMap,Flat"))


def test_lists_in_another_file_are_not_even_opened(tmp_path, monkeypatch):
    other = faiss.index_factory(DIM, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    other.train(clustered(100, seed=16))
    lists = faiss.OnDiskInvertedLists(2, 4 * DIM, str(tmp_path / "elsewhere"))
    other.replace_invlists(lists)
    refuses(tmp_path, monkeypatch, other)


def refuses(folder, monkeypatch, other):
    content = faiss.serialize_index(other).tobytes()
    file = store(folder, NAME, ROWS, lambda stream: stream.write(content))
    monkeypatch.delattr(faiss, "read_index")
    with pytest.raises(ValueError, match=r"knn_g1.faiss is damaged: (?!it holds a structure \[)"):
        read_structure(folder, file, sized("Flat"), DIM, mmap=False)


@pytest.mark.parametrize("name", ["Flat", "HNSW", *IVF])
def test_ids_and_sizes_that_are_not_those_of_the_rows_are_refused(tmp_path, embeddings, ids, name):
    index = make_searcher(embeddings, ids, kind := sized(name))
    index.kind = kind
    file = store(tmp_path, NAME, ROWS, index.engine.write)
    narrow = stored_embeddings(tmp_path, clustered(ROWS, seed=2)[:, :16])
    with pytest.raises(ValueError, match="damaged: its ids are not those of the metadata"):
        read(tmp_path, file, embeddings, ids + 1, index)
    with pytest.raises(ValueError, match="damaged: it holds 2000 vectors, not 2001"):
        read(tmp_path, replace(file, rows=ROWS + 1), embeddings, ids, index)
    with pytest.raises(ValueError, match="damaged: its vectors have dimension 32, not 16"):
        read(tmp_path, file, narrow, ids, index)


def test_graph_whose_links_lead_out_of_it_is_refused(tmp_path, embeddings, ids):
    index = make_searcher(embeddings, ids, kind := sized("HNSW"))
    index.kind = kind
    index.engine.write(stream := BytesIO())
    content = bytearray(stream.getvalue())
    loaded = faiss.deserialize_index(np.frombuffer(bytes(content), "u1"))
    graph = faiss.downcast_index(loaded.index)
    links = faiss.vector_to_array(graph.hnsw.neighbors)
    place = content.find(links[:64].tobytes())
    struct.pack_into("<i", content, place, ROWS)
    file = store(tmp_path, NAME, ROWS, lambda stream: stream.write(content))
    with pytest.raises(ValueError, match="damaged: FAISS cannot read it"):
        read(tmp_path, file, embeddings, ids, index)


@pytest.mark.skipif(gpu.gpu_count() > 0, reason="there is a GPU")
def test_cuda_without_a_gpu_is_an_error(embeddings, ids):
    with pytest.raises(ValueError, match="cuda was asked for, but FAISS sees no GPU; use auto or"):
        make_searcher(embeddings, ids, sized("IVFFlat"), device="cuda")


def test_unknown_device_is_an_error(embeddings, ids):
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda, got 'tpu'"):
        make_searcher(embeddings, ids, sized("IVFFlat"), device="tpu")
