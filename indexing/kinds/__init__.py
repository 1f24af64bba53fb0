"""Kinds of search structure: exact and approximate, on CPU and GPU, all answering alike.

kind = choose_kind(images=2_000_000, dim=256, max_memory_bytes=1 << 30)
index = AnnIndex.build(embeddings, ids, kind)
ids, scores = index.search(queries, k=10)
"""

from __future__ import annotations

from indexing.calibration_record import Calibration
from indexing.kinds.ann import AnnIndex
from indexing.kinds.kind import (
    KINDS,
    Kind,
    choose_kind,
    factory_kind,
    memory_bytes,
    named_kind,
)
from indexing.request import AUTO

__all__ = [
    "AUTO",
    "KINDS",
    "AnnIndex",
    "Calibration",
    "Kind",
    "choose_kind",
    "factory_kind",
    "memory_bytes",
    "named_kind",
]
