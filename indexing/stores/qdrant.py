"""Qdrant: an index as one collection, of a server or in a folder of the client's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64
from numpy import ndarray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from indexing.search.request import TARGET, Effort
from indexing.stores.rows import VECTOR, Header, batches_of
from indexing.stores.store import QDRANT, Proposed, Store

if TYPE_CHECKING:
    from indexing.images import IndexedImages
    from indexing.search.engine import Reach

COLLECTION = "images"
"""Name of the collection in a folder."""

KEY = "QDRANT_API_KEY"
"""Environment variable with the key of a server, where it wants one."""

_TIMEOUT_S = 60
_AT_ONCE = 1_024
_EF = 128  # places of a walk through Qdrant's graph


class QdrantStore(Store):
    """A Qdrant collection; what is added to it later is not found, what is removed is an error.

    Args:
        where: What people call it.
        client: Of Qdrant.
        collection: Its name.
        exact: Whether all points are compared, as the client does in its own process; a server
            walks through its graph.
    """

    def __init__(
        self,
        where: str,
        client: Any,  # noqa: ANN401 -- an extra
        collection: str = COLLECTION,
        *,
        exact: bool = True,
    ) -> None:
        self._client, self._collection = client, collection
        with _speaking(where):
            if not client.collection_exists(collection):
                raise FileNotFoundError(
                    f"no Qdrant collection at {where}; write one with "
                    "`matvit index export INDEX --to qdrant`"
                )
            config = client.get_collection(collection).config
            super().__init__(where, Header.from_texts(where, _texts(config.metadata)))
        _check_vectors(where, config.params.vectors, self.header)
        self.is_exact, self.is_graph = exact, not exact
        if not exact:
            self.effort = Effort(
                nprobe=0, ef_search=_EF, rescore=1, target=TARGET, recall=0.0, queries=0
            )

    @classmethod
    def open(cls, where: str) -> QdrantStore:
        """Open a collection.

        Raises:
            FileNotFoundError: If it is not there.
            ConnectionError: If the server does not answer.
            ValueError: If it does not hold the rows of an index.
        """
        if _is_folder(where) and not Path(where).is_dir():
            raise FileNotFoundError(
                f"no Qdrant folder at {where}; write one with "
                "`matvit index export INDEX --to qdrant`"
            )
        client, collection = _connect(where)
        return cls(where, client, collection, exact=_is_folder(where))

    def read_rows(self) -> pa.Table:
        """See `Store`."""
        rows: list[dict[str, Any]] = []
        start = None
        while True:
            points, start = self._client.scroll(
                self._collection, limit=_AT_ONCE, offset=start, with_payload=True
            )
            rows += [{**(point.payload or {}), "id": point.id} for point in points]
            if start is None:
                return pa.Table.from_pylist(rows)

    def read_vectors(
        self, rows: Int64[ndarray, " rows"]
    ) -> tuple[Int64[ndarray, " found"], Float32[ndarray, "found dim"]]:
        """See `Store`."""
        ids = self.ids[rows].tolist()
        points: list[Any] = []
        with _speaking(self.where):
            for start in range(0, len(ids), _AT_ONCE):
                some = ids[start : start + _AT_ONCE]
                points += self._client.retrieve(
                    self._collection, some, with_payload=False, with_vectors=True
                )
        found = np.array([point.id for point in points], dtype=np.int64)
        vectors = np.array([point.vector for point in points], dtype=np.float32)
        return found, vectors.reshape(-1, self.header.encoder.dim)

    def ask(self, queries: Float32[ndarray, "queries dim"], reach: Reach) -> list[Proposed]:
        """See `Store`."""
        how = None if self.is_exact else models.SearchParams(hnsw_ef=reach.ef_search)
        requests = [
            models.QueryRequest(query=query, limit=reach.fetch, params=how)
            for query in queries.tolist()
        ]
        with _speaking(self.where):
            answers = self._client.query_batch_points(self._collection, requests)
        return [
            (
                np.array([point.score for point in answer.points], dtype=np.float32),
                np.array([point.id for point in answer.points], dtype=np.int64),
            )
            for answer in answers
        ]


def write_qdrant(index: IndexedImages, where: str | Path, *, progress: bool = False) -> None:
    """Write an index as a Qdrant collection; one that was written so before is replaced.

    It can be asked once all of it is there.

    Args:
        index: What to write.
        where: A folder, whose name ends in `.qdrant`, or a collection of a server,
            `http://localhost:6333/photos`, whose key is in the variable `QDRANT_API_KEY`.
        progress: Show a progress bar on stderr.

    Raises:
        FileExistsError: If there is a collection that is no index.
        ConnectionError: If the server does not answer.
        ValueError: If it is neither a folder nor a collection.
    """
    name = str(where).rstrip("/")
    client, collection = _connect(name)
    try:
        fill(index, name, client, collection, progress=progress)
    finally:
        client.close()


def fill(
    index: IndexedImages,
    where: str,
    client: Any,  # noqa: ANN401 -- an extra
    collection: str = COLLECTION,
    *,
    progress: bool = False,
) -> None:
    """Write an index as a collection of a client that is there; see `write_qdrant`."""
    texts = Header.of(index).to_texts()
    begun = {"matvit.format": texts["matvit.format"]}  # it opens once it has the others, too
    with _speaking(where):
        if client.collection_exists(collection):
            said = _texts(client.get_collection(collection).config.metadata)
            if not begun.keys() <= said.keys():
                raise FileExistsError(
                    f"{where} is a Qdrant collection that is no index; choose another name"
                )
            client.delete_collection(collection)
        size = index.embeddings.shape[1]
        # By cosine Qdrant would scale the vectors itself, and round them once more.
        how = models.VectorParams(size=size, distance=models.Distance.DOT)
        client.create_collection(collection, vectors_config=how, metadata=begun)
        for batch in batches_of(index, progress=progress):
            table = pa.Table.from_batches([batch])
            vectors = batch.column(VECTOR).flatten().to_numpy().reshape(len(batch), size)
            client.upload_collection(
                collection,
                vectors=vectors,
                payload=table.drop_columns([VECTOR, "id"]).to_pylist(),
                ids=batch.column("id").to_pylist(),
                batch_size=_AT_ONCE,
                wait=True,
            )
        client.update_collection(collection, metadata=texts)


def _check_vectors(where: str, found: Any, header: Header) -> None:  # noqa: ANN401 -- an extra
    """Refuse a collection of other vectors.

    Raises:
        ValueError: If they are of another dimension, or compared otherwise.
    """
    has = (getattr(found, "size", None), getattr(found, "distance", None))
    wanted = (header.encoder.dim, models.Distance.DOT)
    if has != wanted:
        raise ValueError(
            f"{where} compares vectors of dimension {has[0]} by {has[1]}, wanted {wanted[0]} by "
            f"{wanted[1]}; write it again with `matvit index export`"
        )


def _is_folder(where: str) -> bool:
    return "://" not in where


def _connect(where: str) -> tuple[Any, str]:
    """Client and name of the collection.

    Raises:
        BlockingIOError: If another process has the folder open.
        ValueError: If it is neither a folder nor a collection.
    """
    if _is_folder(where):
        if not where.endswith(QDRANT):
            raise ValueError(
                f"a folder of Qdrant's is called NAME{QDRANT}, and a collection of a server "
                f"http://HOST:6333/NAME, got {where!r}; name it so"
            )
        try:
            return QdrantClient(path=where), COLLECTION
        except RuntimeError as error:  # its own words for a lock
            raise BlockingIOError(
                f"{where} is open elsewhere: Qdrant lets one program at a time into a folder; "
                "wait for it, or run a server"
            ) from error
    server, _, collection = where.rpartition("/")
    if not collection or server.count("/") < 2:
        raise ValueError(f"{where} names no collection; wanted http://HOST:6333/NAME")
    key = os.environ.get(KEY)
    # Else it asks the server for its version, and tells on stderr of one that does not answer.
    client = QdrantClient(url=server, api_key=key, timeout=_TIMEOUT_S, check_compatibility=False)
    return client, collection


def _texts(metadata: Any) -> dict[str, str]:  # noqa: ANN401 -- an extra
    """Metadata of a collection, as far as it is text."""
    return {key: text for key, text in (metadata or {}).items() if isinstance(text, str)}


@contextmanager
def _speaking(where: str) -> Iterator[None]:
    """Turn what Qdrant's client says of a server into an error of ours."""
    try:
        yield
    except ApiException as error:
        text = " ".join(str(error).split())
        raise ConnectionError(f"Qdrant at {where} did not answer as it should: {text}") from error
