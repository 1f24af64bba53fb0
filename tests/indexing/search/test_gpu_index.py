"""Search on a GPU answers as on the CPU. Skipped where FAISS sees no GPU.

Scores are exact on both, so an image that both find has the same score to the last bit. Exact kinds
must agree in everything; of the others at most 1 in 100 images may differ, since lookup tables are
float16 on a GPU and its k-means takes sums in another order.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO

import faiss
import numpy as np
import pytest
import torch
from vectors import NAME, ROWS, clustered, described, sized, stored_embeddings

from indexing.search import gpu
from indexing.search.gpu import MAX_FETCH, gpu_count
from indexing.search.making import make_searcher, read_searcher
from indexing.store.files import store

EXACT = ("Flat", "Flat16")
ON_GPU = (*EXACT, "IVFFlat", "IVFSQ8", "IVFPQ")
needs_gpu = pytest.mark.skipif(gpu_count() == 0, reason="FAISS sees no GPU")


@pytest.fixture
def built(request, tmp_path):
    embeddings = stored_embeddings(tmp_path, clustered(ROWS, seed=2))
    ids = np.arange(ROWS) * 3
    return make_searcher(embeddings, ids, sized(request.param), device="cuda")


@needs_gpu
@pytest.mark.parametrize("built", ON_GPU, indirect=True)
def test_gpu_answers_as_the_cpu_does(request, tmp_path, built):
    name = request.node.callspec.params["built"]
    file = store(tmp_path, NAME, ROWS, built.engine.write)
    record = described(sized(name), file, built.effort)
    on_cpu = read_searcher(tmp_path, record, built.embeddings, built.ids)
    queries = clustered(200, seed=4)
    (ids, scores), (cpu_ids, cpu_scores) = built.search(queries, 10), on_cpu.search(queries, 10)
    if name in EXACT:
        np.testing.assert_array_equal(ids, cpu_ids)
        np.testing.assert_array_equal(scores, cpu_scores)
    shared = 0
    for row in range(len(queries)):
        mine = dict(zip(ids[row].tolist(), scores[row].tolist(), strict=True))
        theirs = dict(zip(cpu_ids[row].tolist(), cpu_scores[row].tolist(), strict=True))
        assert all(mine[image] == theirs[image] for image in mine.keys() & theirs.keys())
        shared += len(mine.keys() & theirs.keys())
    assert shared >= 0.99 * ids.size


@needs_gpu
@pytest.mark.parametrize("built", ON_GPU, indirect=True)
def test_tensor_on_the_gpu_is_answered_as_its_copy_in_numpy(built):
    queries = clustered(50, seed=5)
    expected = built.search(queries, 10)
    found = built.search(torch.from_numpy(queries).cuda(), 10)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_gpu
@pytest.mark.parametrize("built", ["IVFFlat"], indirect=True)
def test_threads_share_one_gpu(built):
    queries = [clustered(20, seed=seed) for seed in range(8)]
    expected = [built.search(asked, 5)[0] for asked in queries]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda asked: built.search(asked, 5)[0], queries))
    np.testing.assert_array_equal(found, expected)


@needs_gpu
@pytest.mark.parametrize("name", ["Flat", "IVFPQ"])
def test_more_images_than_a_gpu_fetches_at_once_are_found(tmp_path, name):
    count = MAX_FETCH + 500
    embeddings = stored_embeddings(tmp_path, clustered(count, seed=2))
    index = make_searcher(embeddings, np.arange(count), sized(name, count), device="cuda")
    ids, _ = index.search(clustered(2, seed=6), count)
    assert (np.sort(ids, axis=1) == index.ids).all()


@needs_gpu
@pytest.mark.parametrize("k", [10, MAX_FETCH + 100])
def test_more_equal_images_than_a_gpu_fetches_at_once_come_by_id(tmp_path, k):
    rows = clustered(MAX_FETCH + 1_000, seed=2)
    rows[: MAX_FETCH + 500] = rows[0]
    embeddings = stored_embeddings(tmp_path, rows)
    index = make_searcher(embeddings, np.arange(len(rows)), sized("Flat", len(rows)), device="cuda")
    assert index.search(rows[:1], k)[0].tolist() == [list(range(k))]


@needs_gpu
@pytest.mark.parametrize("name", ["HNSW", "IVFRaBitQ"])
def test_kind_that_runs_on_a_cpu_only_says_so(tmp_path, name):
    embeddings = stored_embeddings(tmp_path, clustered(ROWS, seed=2))
    with pytest.raises(ValueError, match=rf"kind {name} .* runs on a CPU only; use device auto"):
        make_searcher(embeddings, np.arange(ROWS), sized(name), device="cuda")
    make_searcher(embeddings, np.arange(ROWS), sized(name), device="auto").engine.write(BytesIO())


@pytest.mark.skipif(gpu_count() > 0, reason="there is a GPU")
@pytest.mark.skipif(not hasattr(faiss, "StandardGpuResources"), reason="FAISS for CPUs")
@pytest.mark.parametrize("name", ["Flat16", "IVFFlat", "IVFPQ"])
def test_gpu_that_fails_is_left_for_the_cpu_unless_it_was_asked_for(tmp_path, monkeypatch, name):
    embeddings = stored_embeddings(tmp_path, clustered(ROWS, seed=2))
    build = partial(make_searcher, embeddings, np.arange(ROWS), sized(name))
    expected = build(device="cpu").search(clustered(5, seed=4), 10)
    monkeypatch.setattr(gpu, "gpu_count", lambda: 1)  # one that cannot be used
    index = build(device="auto")
    for one, other in zip(index.search(clustered(5, seed=4), 10), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="cannot be put on the GPU, use device cpu") as error:
        build(device="cuda")
    assert "\n" not in str(error.value)
    file = store(tmp_path, NAME, ROWS, index.engine.write)
    record = described(sized(name), file, index.effort)
    read = partial(read_searcher, tmp_path, record, embeddings, index.ids)
    assert read(device="auto").search(clustered(5, seed=4), 10)[0].tolist() == expected[0].tolist()
    with pytest.raises(gpu.DoesNotFitError):
        read(device="cuda")
