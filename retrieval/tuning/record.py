"""What tuning found out, stored with the index that it is about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from indexing import ImageIndex, write_atomically
from matvit import Encoder
from retrieval.escalation import Escalation
from retrieval.frontier import OperatingPoint, ParetoFrontier
from retrieval.tuning.score_scale import ScoreScale

FILE = "tuning.json"
_VERSION = 1
_LARGEST = 1 << 24


@dataclass(frozen=True, kw_only=True)
class TunedFor:
    """The index that was tuned, as it was then.

    Attributes:
        generation: Of the index.
        images: In it.
        content: Hash of the ids and of the kind of index: a compaction changes neither.
        fingerprint: Of the full encoder.
        weights: Of the weights that its smaller sizes run from.
    """

    generation: int
    images: int
    content: str
    fingerprint: str
    weights: str

    @classmethod
    def of(cls, index: ImageIndex, encoder: Encoder) -> TunedFor:
        """Describe an index and its encoder as they are now."""
        info = index.info()
        digest = hashlib.sha256(json.dumps([info["kind"], info["factory"]]).encode())
        digest.update(index.ids.tobytes())
        return cls(
            generation=info["generation"],
            images=len(index),
            content=digest.hexdigest()[:16],
            fingerprint=encoder.fingerprint,
            weights=encoder.weights_fingerprint,
        )


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Which submodels are worth asking an index with, measured on queries of its own kind.

    Choices are made by `selection`, and told by `frontier`, which other queries measured: the best
    of many is never as good as it looked when it was picked.

    Attributes:
        tuned_for: The index that this is about.
        frontier: Operating points of the submodels that were kept.
        selection: The same, measured on the queries that are used to choose.
        target: Of the frontier's metric, what the recommended submodel has to reach.
        strategy: Name of what searched the submodels.
        measured: Submodels that it had to embed the queries with.
        selecting: Queries to choose by.
        altered: Whether the queries were altered images of the index.
        escalation: How a query chooses for itself; None if nothing was found worth it.
        scales: How the scores of submodels translate into the full encoder's.
    """

    tuned_for: TunedFor
    frontier: ParetoFrontier
    selection: ParetoFrontier
    target: float
    strategy: str
    measured: int
    selecting: int
    altered: bool
    escalation: Escalation | None = None
    scales: Mapping[str, ScoreScale] = field(default_factory=dict)

    @property
    def by_overlap(self) -> ParetoFrontier:
        """What choices are made by, ranked by the overlap with the full encoder's answers.

        It tells submodels apart with few queries; a hit rate does not.
        """
        return ParetoFrontier(self.selection, metric=f"overlap@{self.selection.points[0].k}")

    @property
    def recommended(self) -> OperatingPoint:
        """The cheapest submodel that was selected to reach the target; else the full one."""
        try:
            chosen = self.selection.cheapest(self.target)
        except ValueError:
            chosen = max(self.selection, key=self.selection.recall)
        return self.frontier.point_of(chosen.submodel)

    @property
    def summary(self) -> str:
        """What the recommended submodel saves and what it costs, in one line."""
        chosen, metric = self.recommended, self.frontier.metric
        if chosen.macs_fraction == 1:
            return (
                f"recommended: {chosen.submodel}, the full encoder; nothing smaller reaches "
                f"{metric} {self.target:g}"
            )
        return (
            f"recommended: {self.frontier.describe(chosen)}, on {chosen.queries:,} queries that "
            "did not choose it"
        )

    def note(self, now: TunedFor) -> str | None:
        """Say how the index differs from the one that was tuned; None if it does not."""
        then = self.tuned_for
        if now.content == then.content:
            return None
        return (
            f"the index was tuned at generation {then.generation} with {then.images:,} images "
            f"and is now at generation {now.generation} with {now.images:,}; "
            "`matvit tune` measures again"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **vars(self),
            "tuned_for": asdict(self.tuned_for),
            "frontier": json.loads(self.frontier.to_json()),
            "selection": json.loads(self.selection.to_json()),
            "escalation": None if self.escalation is None else self.escalation.to_dict(),
            "scales": {name: asdict(scale) for name, scale in self.scales.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tuning:
        """Read back what `to_dict` returned.

        Raises:
            ValueError: If the values are of another shape.
        """
        try:
            escalation = values["escalation"]
            known = {
                **values,
                "tuned_for": TunedFor(**values["tuned_for"]),
                "frontier": ParetoFrontier.from_json(json.dumps(values["frontier"])),
                "selection": ParetoFrontier.from_json(json.dumps(values["selection"])),
                "escalation": None if escalation is None else Escalation.from_dict(escalation),
                "scales": {
                    name: ScoreScale(**{side: tuple(scale[side]) for side in scale})
                    for name, scale in values["scales"].items()
                },
            }
            return cls(**known)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a tuning: {error!r}") from error


def store_tuning(folder: Path, tuning: Tuning) -> None:
    """Put a tuning beside an index, in place of an earlier one."""
    write_checked(folder / FILE, tuning.to_dict())


def read_tuning(folder: Path, encoder: Encoder) -> Tuning | None:
    """Read the tuning of an index; None if it has none, or one of another encoder.

    Raises:
        ValueError: If it is damaged.
    """
    values = read_checked(folder / FILE)
    if values is None:
        return None
    try:
        tuning = Tuning.from_dict(values)
    except ValueError as error:
        raise _damaged(folder / FILE, str(error)) from error
    theirs = (tuning.tuned_for.fingerprint, tuning.tuned_for.weights)
    return tuning if theirs == (encoder.fingerprint, encoder.weights_fingerprint) else None


def write_checked(path: Path, values: dict[str, Any]) -> None:
    """Write JSON so that damage is noticed when it is read."""
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    document = {
        "format_version": _VERSION,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "content": values,
    }
    data = (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    write_atomically(path, lambda stream: stream.write(data))


def read_checked(path: Path) -> dict[str, Any] | None:
    """Read what `write_checked` wrote; None if there is no such file.

    Raises:
        ValueError: If it is damaged, or of another version.
    """
    if not path.exists():
        return None
    if path.stat().st_size > _LARGEST:
        raise _damaged(path, "it is far too large")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(document, dict) or set(document) != {"format_version", "sha256", "content"}:
        raise _damaged(path, "it holds something else")
    if document["format_version"] != _VERSION:
        raise ValueError(
            f"{path} has format version {document['format_version']!r:.20}, this program reads "
            f"{_VERSION}; run `matvit tune` again"
        )
    content = document["content"]
    text = json.dumps(content, sort_keys=True)
    if (
        not isinstance(content, dict)
        or hashlib.sha256(text.encode()).hexdigest() != document["sha256"]
    ):
        raise _damaged(path, "its content is not what was written")
    return content


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is damaged: {reason}; remove it or run `matvit tune` again")
