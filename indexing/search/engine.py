"""What proposes candidates to a search: FAISS, or a vector store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from jaxtyping import Float32, Int64
from numpy import ndarray

from indexing.search.request import Effort

if TYPE_CHECKING:
    import torch

Queries: TypeAlias = "Float32[ndarray, 'queries dim'] | torch.Tensor"

_GROWTH = 4


class Reach(NamedTuple):
    """How far one search goes: candidates fetched, lists visited, places kept in a graph."""

    fetch: int
    nprobe: int
    ef_search: int

    def wider(self) -> Reach:
        """Several times as far."""
        return Reach(*(_GROWTH * value for value in self))


class Engine(Protocol):
    """Proposes candidates; their order and scores are estimates, as `RescoringSearcher` knows.

    Attributes:
        lists: Lists of an IVF index, 0 of another.
        is_graph: Whether it is an HNSW graph.
        is_exact: Whether every vector is compared, and the errors of the estimates are bounded.
        error: Of the estimates, beyond the rounding of float32; 0 for none.
        labels_are_rows: Whether candidates are named by their place, not by their id.
        code_size: Bytes that are compared for each vector.
        max_fetch: Most candidates and lists that one search can have.
        float_table: FAISS pointer to the vectors, if it keeps them as float32 row by row.
    """

    lists: int
    is_graph: bool
    is_exact: bool
    error: float
    labels_are_rows: bool
    code_size: int
    max_fetch: int
    float_table: Any

    @property
    def everything(self) -> Effort:
        """Effort of a search that leaves nothing out."""
        ...

    def propose(
        self, queries: Queries, reach: Reach
    ) -> tuple[Float32[ndarray, "queries fetch"], Int64[ndarray, "queries fetch"]]:
        """Return estimated scores and labels, best first; -1 where there is no candidate."""
        ...
