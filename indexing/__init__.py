"""Memory: a corpus of images, their embeddings on disk, and the index that searches them.

index = ImageIndex.build(model, Corpus.from_folder("photos/"), "photos.index")
ids, scores = index.search(vectors, k=10)
index.add(model, Corpus.from_folder("photos/"))  # what is new or changed since
"""

from __future__ import annotations

from indexing.compact import CompactReport
from indexing.corpus import Corpus, DecodedBatch
from indexing.index import ImageIndex, IndexMismatchError
from indexing.merge import AddReport
from indexing.records import Failure, ImageRecord
from indexing.remove import RemoveReport
from indexing.verify import Damage, VerifyReport, verify

__all__ = [
    "AddReport",
    "CompactReport",
    "Corpus",
    "Damage",
    "DecodedBatch",
    "Failure",
    "ImageIndex",
    "ImageRecord",
    "IndexMismatchError",
    "RemoveReport",
    "VerifyReport",
    "verify",
]
