"""Scores of a submodel on the full encoder's scale, so that a threshold keeps its meaning."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from jaxtyping import Float
from numpy import ndarray

_QUANTILES = 33


class ScoreScale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which score of the full encoder a score of a submodel stands for.

    A smaller encoder's queries lie a little further from the stored vectors, so its scores are
    lower, and a threshold that was set for the full encoder would let less through. Here scores of
    equal rank among the hits of the same queries stand for each other (equipercentile linking), so
    that a threshold lets the same share of hits through at every size. In between it is linear;
    beyond the ends, where nothing was seen, scores move as far as at the end, but never above 1.

    Args:
        submodel: Scores of the submodel, ascending.
        full: The full encoder's scores of the same ranks, ascending.

    Raises:
        ValueError: If they are not as many, fewer than two, or not ascending.
    """

    submodel: tuple[float, ...]
    full: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.submodel) != len(self.full) or len(self.full) < 2:
            raise ValueError(
                f"a scale needs as many scores of either, at least two, got {len(self.submodel)} "
                f"and {len(self.full)}"
            )
        if (np.diff(self.submodel) <= 0).any() or (np.diff(self.full) < 0).any():
            raise ValueError("the scores of a scale must ascend")

    @classmethod
    def fit(cls, submodel: Float[ndarray, "..."], full: Float[ndarray, "..."]) -> ScoreScale | None:
        """Link the scores that a submodel and the full encoder gave their hits of the same queries.

        Args:
            submodel: Scores of hits; -inf, for none, is left out.
            full: The same of the full encoder.

        Returns:
            The scale; None where there are too few different scores for one.
        """
        if not np.isfinite(submodel).any() or not np.isfinite(full).any():
            return None
        shares = np.linspace(0, 1, _QUANTILES)
        theirs, mine = (np.quantile(_known(scores), shares) for scores in (full, submodel))
        ascending = np.append(True, np.diff(mine) > 0)
        if ascending.sum() < 2:
            return None
        return cls(submodel=_plain(mine[ascending]), full=_plain(theirs[ascending]))

    def to_full(self, scores: Float[ndarray, "*shape"]) -> Float[ndarray, "*shape"]:
        """Return the scores of the full encoder that scores of the submodel stand for."""
        known, wanted = np.array(self.submodel), np.array(self.full)
        inside = np.interp(scores, known, wanted)
        beyond = scores - np.clip(scores, known[0], known[-1])
        return np.asarray(np.minimum(inside + beyond, np.maximum(1.0, wanted[-1])))


def _known(scores: Float[ndarray, "..."]) -> Float[ndarray, " known"]:
    flat = np.asarray(scores, dtype=np.float64).ravel()
    return flat[np.isfinite(flat)]


def _plain(scores: Sequence[float] | ndarray) -> tuple[float, ...]:
    return tuple(float(score) for score in scores)
