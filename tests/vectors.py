"""Vectors around centres, stored as an index stores them, and kinds sized for them."""

from __future__ import annotations

from functools import partial

import numpy as np

from indexing.search.kinds import KINDS, factory_kind, named_kind
from indexing.search.making import make_searcher
from indexing.search.request import KindRequest
from indexing.store.embeddings import Embeddings
from indexing.store.files import store
from indexing.store.manifest import SearchRecord

NAME = "index/knn_g1.faiss"
DIM = 32
ROWS = 2_000


def clustered(count, seed):
    """Vectors around forty centres, which are the same for every seed."""
    centres = np.random.default_rng(0).standard_normal((40, DIM))
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, 40, count)] + 0.5 * rng.standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def stored_embeddings(folder, rows):
    parts = np.array_split(rows.astype(np.float16), 3)
    files = []
    for number, part in enumerate(parts):
        name = f"img_emb/img_emb_{number:06d}.npy"
        files.append(store(folder, name, len(part), partial(np.save, arr=part)))
    return Embeddings(folder, files, rows.shape[1])


def sized(name, rows=ROWS):
    return named_kind(name, rows, DIM) if name in KINDS else factory_kind(name, rows, DIM)


def flat_searcher(rows, ids):
    """Exact search of all rows, which scores them from memory."""
    return make_searcher(rows, ids, named_kind("Flat", *rows.shape))


def described(kind, file, effort=None):
    """What a manifest says about the file of a search structure."""
    return SearchRecord(
        kind=kind.name, factory=kind.factory, effort=effort, request=KindRequest(),
        note=None, file=file,
    )  # fmt: skip
