"""LanceDB: an index as one Lance table, in a folder or in an object store."""

from __future__ import annotations

import os
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("LANCE_LOG", "error")  # it tells on stderr of each table that is new

import lancedb
import msgspec
import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64
from lancedb.index import IvfSq
from numpy import ndarray

from indexing.search.effort import measure_effort
from indexing.search.request import TARGET, Effort
from indexing.search.searcher import RescoringSearcher
from indexing.stores.rows import VECTOR, Header, batches_of, schema_of
from indexing.stores.store import LANCE, Proposed, Store

if TYPE_CHECKING:
    from indexing.images import IndexedImages
    from indexing.search.engine import Reach

SCANNED = 50_000
"""Images of a table that are all compared; more get an IVF index."""

_EFFORT, _LISTS = "matvit.effort", "matvit.lists"  # in the metadata of the column of vectors
_SQ_ERROR = 2.0**-6  # of an inner product whose vector has 8 bits per coordinate
_DISTANCE = "_distance"


class LanceStore(Store):
    """A Lance table as of one version: what is written to it later is not seen.

    Without an index of its own all rows are compared, which is exact; rows that such an index does
    not cover yet are compared too.

    Args:
        where: Name of the table, which ends in `.lance`.
        table: The table, opened.
    """

    def __init__(self, where: str, table: Any) -> None:  # noqa: ANN401 -- LanceDB is an extra
        table.checkout(table.version)
        self._table = table
        header = Header.from_texts(where, _texts(table))
        wanted = schema_of(header).field(VECTOR).type
        if VECTOR not in table.schema.names or table.schema.field(VECTOR).type != wanted:
            raise ValueError(
                f"{where} has no column {VECTOR} of {wanted}; write it again with "
                "`matvit index export`"
            )
        super().__init__(where, header)
        self._take_index()

    @classmethod
    def open(cls, where: str) -> LanceStore:
        """Open a table.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it does not hold the rows of an index.
        """
        if (found := _table_at(where)) is None:
            raise FileNotFoundError(
                f"no Lance table at {where}; write one with `matvit index export INDEX --to lance`"
            )
        return cls(where, found)

    def read_rows(self) -> pa.Table:
        """See `Store`."""
        names = [name for name in self._table.schema.names if name != VECTOR]
        return self._table.search().select(names).to_arrow()

    def read_vectors(
        self, rows: Int64[ndarray, " rows"]
    ) -> tuple[Int64[ndarray, " found"], Float32[ndarray, "found dim"]]:
        """See `Store`."""
        offsets = np.sort(self.places[rows]).tolist()
        found = self._table.take_offsets(offsets).select(["id", VECTOR]).to_arrow()
        vectors = found.column(VECTOR).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return found.column("id").to_numpy(), vectors.reshape(-1, self.header.encoder.dim)

    def ask(self, queries: Float32[ndarray, "queries dim"], reach: Reach) -> list[Proposed]:
        """See `Store`."""
        asked = self._table.search(list(queries), vector_column_name=VECTOR)
        asked = asked.distance_type("dot").limit(reach.fetch)  # its default is squared L2
        if self.lists:
            asked = asked.nprobes(max(1, reach.nprobe))
        found = asked.select(["id", _DISTANCE]).to_arrow()
        ids, scores = found.column("id").to_numpy(), 1 - found.column(_DISTANCE).to_numpy()
        if "query_index" not in found.column_names:  # of a single query
            return [(scores, ids)]
        query = found.column("query_index").to_numpy()
        return [(scores[query == row], ids[query == row]) for row in range(len(queries))]

    def _take_index(self) -> None:
        """See whether the table has an index of its own, and how hard to search it.

        Raises:
            ValueError: If it is for another distance than inner products.
        """
        found = [each for each in self._table.list_indices() if each.columns == [VECTOR]]
        if not found:
            return
        distance = self._table.index_stats(found[0].name).distance_type
        if distance != "dot":
            raise ValueError(
                f"the index of {self.where} is for the distance {distance}, wanted dot; make it "
                "again with distance_type='dot', or drop it: then all rows are compared"
            )
        self.is_exact, self.error = False, _SQ_ERROR
        said = self._table.schema.field(VECTOR).metadata or {}
        if _EFFORT.encode() in said:
            self.lists = int(said[_LISTS.encode()])
            self.effort = msgspec.json.decode(said[_EFFORT.encode()], type=Effort)
        else:  # one that somebody else made, of a type that nobody knows: a fourth of its lists
            self.lists = isqrt(len(self.ids))
            self.effort = Effort(
                nprobe=max(20, self.lists // 4), ef_search=0, rescore=8,
                target=TARGET, recall=0.0, queries=0,
            )  # fmt: skip


def write_lance(
    index: IndexedImages, where: str | Path, *, scanned: int = SCANNED, progress: bool = False
) -> None:
    """Write an index as a Lance table; one that was written so before gets a new version.

    Of more images an IVF index is made, and measured how hard to search it so that it finds 95 %
    of what exact search finds.

    Args:
        index: What to write.
        where: Name of the table, which ends in `.lance`; a folder, or a URI such as
            `s3://bucket/photos.lance`.
        scanned: Images up to which there is no index.
        progress: Show a progress bar on stderr.

    Raises:
        FileExistsError: If there is a table that is no index.
        ValueError: If the name ends otherwise.
    """
    name = str(where).rstrip("/")
    folder, table_name = _split(name)
    if (before := _table_at(name)) is not None:
        try:
            Header.from_texts(name, _texts(before))
        except ValueError as error:
            raise FileExistsError(
                f"{name} is a Lance table that is no index; choose another name"
            ) from error
    schema = schema_of(Header.of(index))
    table = lancedb.connect(folder).create_table(
        table_name,
        pa.RecordBatchReader.from_batches(schema, batches_of(index, progress=progress)),
        mode="create" if before is None else "overwrite",
    )
    if len(index) > scanned:
        _make_index(index, name, table)
    table.optimize()


def _make_index(index: IndexedImages, where: str, table: Any) -> None:  # noqa: ANN401
    """Index the vectors of a table, and keep with them how hard to search."""
    lists = isqrt(len(index))
    table.create_index(VECTOR, config=IvfSq(distance_type="dot", num_partitions=lists))
    store = LanceStore(where, table)
    table.checkout_latest()
    # The vectors of the index are nearer than those of the table, and the same.
    effort = measure_effort(RescoringSearcher(store, index.embeddings, index.ids))
    said = {_EFFORT: msgspec.json.encode(effort).decode(), _LISTS: str(lists)}
    table.update_field_metadata({"path": VECTOR, "metadata": said})


def _table_at(where: str) -> Any | None:  # noqa: ANN401
    """Open a table; None if it is not there."""
    folder, name = _split(where)
    if "://" not in where and not Path(where).is_dir():
        return None
    try:
        return lancedb.connect(folder).open_table(name)
    except (FileNotFoundError, ValueError) as error:
        if "not found" in str(error):
            return None
        raise


def _split(where: str) -> tuple[str, str]:
    """Database and name of a table.

    Raises:
        ValueError: If it is no name of one.
    """
    folder, _, name = where.rpartition("/")
    if not name.endswith(LANCE) or name == LANCE:
        raise ValueError(f"a Lance table is called NAME{LANCE}, got {where!r}; name it so")
    return folder or ("/" if where.startswith("/") else "."), name.removesuffix(LANCE)


def _texts(table: Any) -> dict[str, str]:  # noqa: ANN401
    """Metadata of the schema of a table."""
    texts = (table.schema.metadata or {}).items()
    return {key.decode(errors="replace"): text.decode(errors="replace") for key, text in texts}
