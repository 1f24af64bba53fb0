"""`AnnIndex`: search structures of every kind, with exact scores whatever FAISS estimates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from indexing.search import gpu
from indexing.search.effort import TARGET, calibrate, leave_nothing_out
from indexing.search.engine import Engine, Queries
from indexing.search.faiss_file import held_ids, read_structure, write_faiss
from indexing.search.kinds import Kind
from indexing.search.making import make_structure
from indexing.search.request import Calibration
from indexing.search.scoring import SPARE, ExactScores, best_first, nearest, rounding
from indexing.store.embeddings import Embeddings
from indexing.store.files import StoredFile, damaged

_PAIRS = 1 << 16  # of queries and candidates, searched for at a time
_GROWTH = 4
_FLOAT16_ERROR = 2.0**-11 + 2.0**-20  # of a score: half a unit in the last place, and subnormals
_GPU_ERROR = 2.0**-9  # queries are rounded too, and sums are taken in another order


class AnnIndex:
    """A FAISS index of any kind over the rows of an embedding table.

    FAISS proposes more candidates than asked for; each gets its exact cosine, computed in float32
    from its own query and stored embedding alone, and the best are returned, equal scores by
    smaller id. A score is therefore the same for every kind and device; only which images are
    found may differ. If a search finds fewer than k images it is repeated with more effort, and
    at last without the index, so that there are always k.

    Args:
        faiss_index: As `make_structure` makes it.
        embeddings: The rows it was made from.
        ids: Of the rows, in their order.
        on_gpu: Search on the GPU.
        calibration: How hard to search; None for without leaving anything out.

    Attributes:
        ids: int64, shape (images,), as given.
        embeddings: As given.
        calibration: How hard is searched.
        is_exact: Whether nothing can be missed.
    """

    def __init__(
        self,
        faiss_index: faiss.Index,
        embeddings: Embeddings,
        ids: Int64[ndarray, " images"],
        *,
        on_gpu: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        self.ids = np.ascontiguousarray(ids, dtype=np.int64)
        self.embeddings = embeddings
        self._faiss_index = faiss_index
        self._engine = Engine(faiss_index, on_gpu=on_gpu)
        self.is_exact = self._engine.is_exact
        self.lists, self.is_graph = self._engine.lists, self._engine.is_graph
        self.code_size, self.estimates = self._engine.code_size, self._engine.estimates
        self._rows_are_ids = bool((self.ids == np.arange(len(self.ids))).all())
        if not (self._rows_are_ids or self._engine.labels_are_rows):
            self._order = np.argsort(self.ids, kind="stable")
            self._sorted = self.ids[self._order]
        self._scores = ExactScores(self._engine, embeddings)
        self._cuts = not self.estimates
        self._doubt = rounding(embeddings.shape[1])
        if self.estimates:
            self._doubt += _GPU_ERROR if on_gpu else _FLOAT16_ERROR
        self.calibration = calibration or leave_nothing_out(self)

    @classmethod
    def build(
        cls,
        embeddings: Embeddings,
        ids: Int64[ndarray, " images"],
        kind: Kind,
        *,
        seed: int = 0,
        device: str = "auto",
        target: float = TARGET,
        progress: bool = False,
    ) -> AnnIndex:
        """Train, fill and calibrate an index.

        The same seed gives the same answers on one machine; an HNSW graph only if FAISS runs on
        one thread, since its threads race for neighbours.

        Args:
            embeddings: Unit vectors.
            ids: Of the rows; each once, none negative.
            kind: As `choose_kind`, `named_kind` or `factory_kind` return it.
            seed: Of the training sample, k-means, rotations and the calibration.
            device: `"auto"`, `"cpu"` or `"cuda"`: where to train, fill and search.
            target: Wanted ann_recall@10.
            progress: Show a progress bar on stderr.

        Raises:
            ValueError: If there are too few images for the kind, ids are not one per row, or the
                device cannot be had.
        """
        ids = np.asarray(ids)
        if len(ids) != len(embeddings) or len(np.unique(ids)) != len(ids) or (ids < 0).any():
            raise ValueError(
                f"{len(embeddings):,} rows need as many different ids, none negative; "
                f"got {len(np.unique(ids)):,}"
            )
        if len(ids) < kind.min_images:
            raise ValueError(
                f"kind {kind.name} ({kind.factory}) needs at least {kind.min_images:,} images, "
                f"there are {len(ids):,}; use Flat"
            )
        on_gpu = gpu.resolve(device, kind, embeddings.shape[1])

        def make(on_gpu: bool) -> AnnIndex:
            structure = make_structure(
                embeddings, ids, kind, seed=seed, on_gpu=on_gpu, progress=progress
            )
            return cls(structure, embeddings, ids, on_gpu=on_gpu)

        index = gpu.or_on_cpu(make, device, on_gpu=on_gpu)
        index.calibration = calibrate(index, target=target, seed=seed)
        return index

    @classmethod
    def read(
        cls,
        folder: Path,
        file: StoredFile,
        dim: int,
        *,
        embeddings: Embeddings,
        ids: Int64[ndarray, " images"],
        kind: Kind,
        calibration: Calibration | None,
        mmap: bool = False,
        device: str = "auto",
    ) -> AnnIndex:
        """Load an index, once it is certain to be one that `write` wrote.

        Args:
            folder: The index folder.
            file: What the manifest says about the FAISS file.
            dim: Of the vectors.
            embeddings: The rows it was built from, and maybe others.
            ids: Of these rows; ascending, or in the order they were added.
            kind: It was built as.
            calibration: Stored at build; None for without leaving anything out.
            mmap: Leave the lists of an IVF kind on disk and read what a query visits; for an
                index larger than memory. Such an index is searched on the CPU.
            device: `"auto"`, `"cpu"` or `"cuda"`: where to search.

        Raises:
            ValueError: If the file is damaged or holds something else, or the device cannot be
                had.
        """
        on_gpu = gpu.resolve("cpu" if mmap and device == "auto" else device, kind, dim)
        if mmap and on_gpu:
            raise ValueError("a memory-mapped index is searched on the CPU; use device cpu")
        structure = read_structure(folder, file, dim, mmap=mmap and kind.is_ivf)
        held = held_ids(structure)
        if not np.array_equal(held, ids):
            rows = np.minimum(np.searchsorted(ids, held), len(ids) - 1)
            if len(np.unique(held)) < len(held) or (ids[rows] != held).any():
                raise damaged(folder / file.name, "its ids are not those of the metadata")
            embeddings, ids = embeddings.take(rows), held

        def make(on_gpu: bool) -> AnnIndex:
            return cls(structure, embeddings, ids, on_gpu=on_gpu, calibration=calibration)

        return gpu.or_on_cpu(make, device, on_gpu=on_gpu)

    def write(self, stream: BinaryIO) -> None:
        """Write the CPU's copy to a stream, which unlike FAISS's own files notices a full disk."""
        write_faiss(self._faiss_index, stream)

    def search(
        self, queries: Queries, k: int
    ) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """Find the k nearest images of each query, best first, equal scores by smaller id.

        Args:
            queries: Unit vectors, as `unit_queries` returns them. An index on a GPU also takes a
                float32 tensor that is there.
            k: Within 1..number of images.
        """
        chosen = self.calibration
        fetch = max(k + SPARE, k * chosen.rescore)
        if not len(queries):
            return np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)
        if k > self._engine.max_fetch:
            return self._exhaustive(queries, k)
        effort = _Effort(fetch, chosen.nprobe, max(chosen.ef_search, fetch))
        return self._search(queries, k, self._limited(effort))

    def candidates(
        self, queries: Queries, fetch: int, nprobe: int, ef_search: int
    ) -> tuple[Int64[ndarray, "queries fetch"], Float32[ndarray, "queries fetch"]]:
        """Rows that FAISS proposes, in its order, with exact scores; -1 and -inf for none."""
        effort = self._limited(_Effort(fetch, nprobe, max(ef_search, fetch)))
        rows = np.full((len(queries), fetch), -1, dtype=np.int64)
        scores = np.full((len(queries), fetch), -np.inf, dtype=np.float32)
        for run in self._blocks(queries, effort.fetch):
            _, labels = self._engine.propose(queries[run], *effort)
            rows[run, : effort.fetch] = found = self._rows_of(labels)
            scores[run, : effort.fetch] = self._scores.of(_on_cpu(queries[run]), found)
        return rows, scores

    def exhaustive(
        self, queries: Queries, k: int
    ) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """Rows and exact scores of the k nearest, found without the index, from the table.

        Equal scores are ordered by smaller row.
        """
        rows = np.arange(len(self.ids))
        return nearest(_on_cpu(queries), k, self.embeddings, self._scores, rows)

    def _exhaustive(
        self, queries: Queries, k: int
    ) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """The same as ids, equal scores by smaller id."""
        return nearest(_on_cpu(queries), k, self.embeddings, self._scores, self.ids)

    def _search(
        self, queries: Queries, k: int, effort: _Effort
    ) -> tuple[Int64[ndarray, "queries k"], Float32[ndarray, "queries k"]]:
        """Search with an effort; what it does not settle is searched for with more."""
        blocks = self._blocks(queries, effort.fetch)
        found = [self._search_block(queries[run], k, effort) for run in blocks]
        ids, scores, settled = (
            found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
        )
        if settled.all():
            return ids, scores
        pending = np.flatnonzero(~settled)
        more = self._limited(effort.grown())
        if more == effort:
            ids[pending], scores[pending] = self._exhaustive(queries[pending], k)
        else:
            ids[pending], scores[pending] = self._search(queries[pending], k, more)
        return ids, scores

    def _search_block(
        self, queries: Queries, k: int, effort: _Effort
    ) -> tuple[
        Int64[ndarray, "queries k"], Float32[ndarray, "queries k"], Bool[ndarray, " queries"]
    ]:
        """Best k candidates, and whether that settles it: k there are and, if exact, the best."""
        estimates, labels = self._engine.propose(queries, *effort)
        rows = self._rows_of(labels)
        if self._cuts:
            # Those that cannot be among the best k, whatever the rounding: reading a vector costs
            # more than comparing it. All are there: what FAISS returns is sorted.
            possible = estimates >= estimates[:, k - 1 : k] - self._doubt
            rows = np.ascontiguousarray(rows[:, : possible.sum(axis=1).max()])
        exact = self._scores.of(_on_cpu(queries), rows)
        ids = rows if self._rows_are_ids else np.where(rows < 0, -1, self.ids[rows])
        ids, scores = best_first(ids, exact, k)
        settled = ids[:, -1] >= 0
        if self.is_exact and effort.fetch < len(self.ids):
            settled &= scores[:, -1] - estimates[:, -1] > self._doubt
        return ids, scores, settled

    def _rows_of(self, labels: Int64[ndarray, "queries fetch"]) -> Int64[ndarray, "queries fetch"]:
        """Rows of what FAISS names; -1 stays."""
        if self._engine.labels_are_rows or self._rows_are_ids:
            return labels
        places = np.minimum(np.searchsorted(self._sorted, labels), len(self.ids) - 1)
        return np.where(labels < 0, -1, self._order[places])

    def _limited(self, effort: _Effort) -> _Effort:
        """Keep an effort within what there is, and within what the device can do."""
        images, most = len(self.ids), self._engine.max_fetch
        return _Effort(
            min(effort.fetch, images, most),
            min(effort.nprobe, self.lists, most),
            min(effort.ef_search, images) if self.is_graph else 0,
        )

    def _blocks(self, queries: Queries, fetch: int) -> Iterator[slice]:
        """Runs of queries whose candidates fit into memory together."""
        size = max(1, _PAIRS // fetch)
        return (slice(start, start + size) for start in range(0, len(queries), size))


class _Effort(NamedTuple):
    """How hard one search tries."""

    fetch: int
    nprobe: int
    ef_search: int

    def grown(self) -> _Effort:
        return _Effort(*(_GROWTH * value for value in self))


def _on_cpu(queries: Queries) -> Float32[ndarray, "queries dim"]:
    return queries if isinstance(queries, ndarray) else queries.cpu().numpy()
