"""What a manifest keeps of a search: the kind that was asked for, and how hard to search.

The answer to a request, a kind sized for so many images, is found by `indexing.search.kinds`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

AUTO = "auto"

EXACT = "Flat"
"""The kind, and its FAISS factory string, that compares every vector and needs no calibration."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SHARES = ("target", "recall")


@dataclass(frozen=True, kw_only=True)
class KindRequest:
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


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Search effort, and what it was measured to reach.

    Attributes:
        nprobe: Lists visited by a query; 0 where there are none.
        ef_search: Candidates that a walk through an HNSW graph keeps; 0 where there is no graph.
        rescore: Candidates fetched for each image asked for, then scored exactly.
        target: The ann_recall@10 that was wanted.
        recall: The ann_recall@10 that held-out rows reached; 1.0 for an exact search.
        queries: Held-out rows it was measured on; 0 for an exact search, or of a single image.
    """

    nprobe: int
    ef_search: int
    rescore: int
    target: float
    recall: float
    queries: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), float if field.name in _SHARES else int
            if type(value) is not kind:
                raise ValueError(f"calibration.{field.name} must be a {kind.__name__}: {value!r}")
        if not (0 < self.target <= 1 and 0 <= self.recall <= 1):
            raise ValueError("the recalls of a calibration must be shares of one")
        if self.rescore < 1 or min(self.nprobe, self.ef_search, self.queries) < 0:
            raise ValueError("the counts of a calibration must not be negative")

    @property
    def is_met(self) -> bool:
        """Whether the target was reached."""
        return self.recall >= self.target

    def describe(self) -> str:
        """Say in a line what was reached."""
        if not self.queries:
            return "exact search" if self.recall == 1 else "not calibrated"
        verdict = "reaches" if self.is_met else "MISSES"
        return (
            f"ann_recall@10 {self.recall:.3f} on {self.queries} held-out images {verdict} "
            f"the target {self.target:g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Read what `to_dict` returned.

        Raises:
            ValueError: If keys are missing or unknown, or a value is of the wrong type or size.
        """
        if set(values) != (known := {field.name for field in fields(cls)}):
            raise ValueError(f"a calibration has the keys {sorted(known)}, not {sorted(values)}")
        return cls(**values)
