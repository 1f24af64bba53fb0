"""How hard to search, and what that was measured to reach, as a manifest keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

_SHARES = ("target", "recall")


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
