"""What a manifest keeps of a search: the kind that was asked for, and how hard to search.

The answer to a request, a kind sized for so many images, is found by `indexing.search.kinds`.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

AUTO = "auto"

EXACT = "Flat"
"""The kind, and its FAISS factory string, that compares every vector; no effort is kept for it."""

TARGET = 0.95
"""Share of the exact ten nearest that an approximate search should return."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_LARGEST = 1 << 53  # what every JSON reader keeps exact
_Count = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST)]
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class KindRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind by name, or an expert's FAISS factory string, and what it may take.

    Attributes:
        kind: Name of a kind; `"auto"` leaves the choice to count and memory.
        factory: FAISS factory string; None for the one of the kind.
        max_memory_bytes: What the structure may take; None for no limit.
        device: `"cpu"` or `"cuda"`, where it will be searched: `"auto"` chooses what is fast
            there. Whatever it chooses can be searched on both.

    Raises:
        ValueError: If both a kind and a factory string are given, no memory is left, or the
            device is another.
    """

    kind: str = AUTO
    factory: str | None = None
    max_memory_bytes: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.factory is not None and self.kind != AUTO:
            raise ValueError(
                f"kind {self.kind!r} and factory {self.factory!r} are both given; leave one out"
            )
        if self.max_memory_bytes is not None and self.max_memory_bytes < 1:
            raise ValueError(
                f"max_memory must be at least 1 byte, got {self.max_memory_bytes}; "
                "leave it out for no limit"
            )
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"an index is searched on cpu or cuda, got {self.device!r:.40}")

    @classmethod
    def of(
        cls, kind: str, factory: str | None, max_memory: int | str | None, device: str = "cpu"
    ) -> KindRequest:
        """Make one of what was typed, where memory may be a size such as `"4GB"`."""
        most = None if max_memory is None else parse_bytes(max_memory)
        return cls(kind=kind, factory=factory, max_memory_bytes=most, device=device)

    @property
    def name(self) -> str:
        """What was asked for, in a word."""
        return self.factory or self.kind


def parse_bytes(size: int | str) -> int:
    """Read a number of bytes, or a size such as `4GB`, `512 MiB` or `1.5G`.

    KB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB of 1024.

    Raises:
        ValueError: If it is no size.
    """
    if type(size) is int:
        return size
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"max_memory must be a size such as 4GB or 512MiB, got {size!r:.40}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].lower()])


class Effort(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Search effort, and what it was measured to reach.

    Attributes:
        nprobe: Lists visited by a query; 0 where there are none.
        ef_search: Candidates that a walk through an HNSW graph keeps; 0 where there is no graph.
        rescore: Candidates fetched for each image asked for, then scored exactly.
        target: The ann_recall@10 that was wanted.
        recall: The ann_recall@10 that held-out rows reached; 1.0 for an exact search.
        queries: Held-out rows it was measured on; 0 for an exact search, or of a single image.
    """

    nprobe: _Count
    ef_search: _Count
    rescore: Annotated[int, msgspec.Meta(ge=1, le=_LARGEST)]
    target: Annotated[float, msgspec.Meta(gt=0, le=1)]
    recall: Annotated[float, msgspec.Meta(ge=0, le=1)]
    queries: _Count

    @property
    def is_met(self) -> bool:
        """Whether the target was reached."""
        return self.recall >= self.target

    def describe(self) -> str:
        """Say in a line what was reached."""
        if not self.queries:
            return "exact search" if self.recall == 1 else "not measured"
        verdict = "reaches" if self.is_met else "MISSES"
        return (
            f"ann_recall@10 {self.recall:.3f} on {self.queries} held-out images {verdict} "
            f"the target {self.target:g}"
        )
