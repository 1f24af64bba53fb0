"""What a search answers: hits, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, overload

from retrieval.escalation import Step


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An image that a search found.

    Attributes:
        rank: Place in the answer, from 1.
        id: Its number in the index.
        path: Its name in the index.
        score: Cosine of query and image, higher is better.
        label: Name of its class; None without one.
    """

    rank: int
    id: int
    path: str
    score: float
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Hits(Sequence[Hit]):
    """The answer to one query: its hits, best first, and what they cost.

    Attributes:
        query: Path of the image asked with, as it was given; None for an image without a name.
        submodel: What embedded the query, as text.
        macs: Multiply-accumulates of embedding it.
        encode_ms: Milliseconds to embed the decoded query; in a batch, each query's share.
        search_ms: Milliseconds to search the index; in a batch, each query's share.
        hits: The hits.
        steps: Of a query that chose for itself, the submodels it was asked with; the last one
            answered, and `macs`, `encode_ms` and `search_ms` are sums over them. Empty otherwise.
    """

    query: str | None
    submodel: str
    macs: int
    encode_ms: float
    search_ms: float
    hits: tuple[Hit, ...]
    steps: tuple[Step, ...] = ()

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, in the stable shape of `matvit search --json`.

        `steps` is there only if the query chose for itself.
        """
        values = asdict(self)
        for hit in values["hits"]:
            del hit["label"]
        steps = [
            {**step, "confidence": step["confidence"] if isfinite(step["confidence"]) else None}
            for step in values.pop("steps")
        ]
        return {**values, "hits": list(values["hits"]), **({"steps": steps} if steps else {})}
