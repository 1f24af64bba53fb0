"""Memory: a corpus of images, their embeddings on disk, and the index that searches them.

index = ImageIndex.build(model, Corpus.from_folder("photos/"), "photos.index")
ids, scores = index.search(vectors, k=10)
index = index.add(model, Corpus.from_folder("photos/"))  # what is new or changed since
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
