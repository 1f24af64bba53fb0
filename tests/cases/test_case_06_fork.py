"""A process that was forked after a search answers like its parent; it used to wait for ever.

In a process of its own: the tests run on one thread, which has nobody to wait for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, sys
from pathlib import Path
import faiss, numpy as np, torch
from indexing import Corpus, ImageIndex
from matvit import embed, load_encoder
from retrieval import Retriever

torch.set_num_threads(4)
faiss.omp_set_num_threads(4)
model = load_encoder("matvit-tiny64", runtime=sys.argv[3], threads=4)
index = ImageIndex.build(model, Corpus.open(sys.argv[1]), sys.argv[2])
many = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)

def answer():
    vectors = embed(model, many, "S")
    ids, _ = index.search(np.repeat(vectors, 40, axis=0), 3)
    hits = Retriever(model, index).search_batch(photos, submodel="S", k=2)
    return ids[::40].tolist(), [hit.path for found in hits for hit in found]

def child(queue):
    queue.put(answer())

photos = sorted(Path(sys.argv[1]).rglob("*.png"))[:3]
right = answer()
context = multiprocessing.get_context("fork")
queue = context.Queue()
forked = context.Process(target=child, args=(queue,))
forked.start()
print(queue.get(timeout=60) == right)
forked.join(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_forked_process_answers_what_its_parent_does(photo_folder, tmp_path, runtime):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, photo_folder, tmp_path / "index", runtime],
        capture_output=True, text=True, check=False, timeout=200, cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
