"""Which store a name means, and the images in it, once they are known to find themselves."""

from __future__ import annotations

from pathlib import Path

from indexing.images import IndexedImages
from indexing.search.live import LiveSearcher
from indexing.search.searcher import RescoringSearcher
from indexing.stores.store import LANCE, QDRANT, Store
from indexing.verification import lost_rows

_URL = ("http://", "https://")
_SAMPLES = 64


def is_store(where: str | Path) -> bool:
    """Whether a name is that of a store: it ends in .lance or .qdrant, or is the URL of a server.

    Examples:
        >>> [is_store(name) for name in ("photos.lance", "http://localhost:6333/photos")]
        [True, True]
        >>> is_store("photos.index")
        False
    """
    return str(where).startswith(_URL) or str(where).rstrip("/").endswith((LANCE, QDRANT))


def open_store(where: str | Path) -> IndexedImages:
    """Open what `matvit index export` wrote to LanceDB or Qdrant, to be searched as an index is.

    What is known of the images is read into memory; vectors stay in the store. A sample of the
    images has to find itself.

    Args:
        where: A Lance table, `photos.lance`; a folder of Qdrant's, `photos.qdrant`; or a
            collection of a Qdrant server, `http://localhost:6333/photos`.

    Raises:
        FileNotFoundError: If it is not there.
        ModuleNotFoundError: If LanceDB or Qdrant's client is not installed.
        ValueError: If it holds anything else than the rows of an index, or is damaged.
    """
    name = str(where).rstrip("/")
    if not is_store(name):
        raise ValueError(
            f"{name} is no store: a Lance table is called NAME{LANCE}, a folder of Qdrant's "
            f"NAME{QDRANT}, a collection of a server http://HOST:6333/NAME"
        )
    # Each needs an extra, and takes its time to be imported.
    if name.endswith(LANCE) and not name.startswith(_URL):
        from indexing.stores.lance import LanceStore

        return images_in(LanceStore.open(name))
    from indexing.stores.qdrant import QdrantStore

    return images_in(QdrantStore.open(name))


def images_in(store: Store) -> IndexedImages:
    """Return the images of an opened store, once a sample of them have found themselves.

    Raises:
        ValueError: If they do not.
    """
    vectors = store.vectors
    searcher = RescoringSearcher(store, vectors, store.ids, effort=store.effort)
    live = LiveSearcher(searcher, store.ids)
    lost = lost_rows(live, store.ids, vectors, _SAMPLES, exact=store.is_exact)
    if len(lost) > (0 if store.is_exact else _SAMPLES // 2):
        name = store.images.column("path")[int(lost[0])].as_py()
        raise ValueError(
            f"{store.where} is damaged: image {name} does not find itself; write it again with "
            "`matvit index export`"
        )
    return IndexedImages(Path(store.where), store.header, store.images, vectors, live)
