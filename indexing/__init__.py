"""Memory: a corpus of images, their embeddings on disk, and the index that searches them.

index = ImageIndex.build(model, Corpus.from_folder("photos/"), "photos.index")
ids, scores = index.search(vectors, k=10)
"""

from __future__ import annotations

from indexing.corpus import Corpus, DecodedBatch, Failure, ImageRecord
from indexing.index import ImageIndex, IndexMismatchError

__all__ = [
    "Corpus",
    "DecodedBatch",
    "Failure",
    "ImageIndex",
    "ImageRecord",
    "IndexMismatchError",
]
