"""What tuning found out about an index, and choosing a submodel by it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from indexing import ImageIndex
from matvit import Encoder, Submodel
from retrieval.hits import Hits

if TYPE_CHECKING:
    from retrieval.tuning.record import Tuning


class Choosing:
    """An encoder, an index, and what tuning stored with it.

    Args:
        encoder: What asks the index.
        index: The index.
    """

    def __init__(self, encoder: Encoder, index: ImageIndex) -> None:
        self.encoder = encoder
        self.index = index
        self._read_tuning: tuple[object, Tuning | None] | None = None

    def choose(
        self,
        max_gmacs: float | None = None,
        max_ms: float | None = None,
        min_recall: float | None = None,
    ) -> Submodel:
        """Pick a submodel by a budget, from what `tune` measured on this index.

        Args:
            max_gmacs: Billions of multiply-accumulates that embedding a query may cost.
            max_ms: Milliseconds that embedding one query may take at the median on this machine;
                measured at the first call and remembered.
            min_recall: What must be kept, of retained hit rate if the index has labels, else of
                the overlap; then the cheapest that keeps it is picked. Else it is the one with
                the largest overlap that fits: a hit rate is too coarse to tell submodels apart.

        Raises:
            ValueError: If the index was never tuned with this encoder, nothing meets the budget
                (the message names the nearest), or it is out of range.
        """
        from retrieval.budget import Budget, choose
        from retrieval.speed import measured_ms

        budget = Budget(max_gmacs=max_gmacs, max_ms=max_ms, min_recall=min_recall)
        here = partial(measured_ms, self.encoder)
        tuning = self._tuned()
        frontier = tuning.selection if min_recall is not None else tuning.by_overlap
        return self.encoder.submodel(choose(frontier, budget, here).submodel)

    @property
    def tuning(self) -> Tuning | None:
        """What `tune` found out about this index; None if it was never tuned with this encoder.

        Raises:
            ValueError: If it is stored but damaged.
        """
        from retrieval.tuning.record import FILE, read_tuning

        try:
            found = (self.index.path / FILE).stat()
        except FileNotFoundError:
            return None
        file = (found.st_mtime_ns, found.st_size, found.st_ino)
        stamp = (file, self.encoder.fingerprint, self.encoder.weights_fingerprint)
        if self._read_tuning is None or self._read_tuning[0] != stamp:
            self._read_tuning = (stamp, read_tuning(self.index.path, self.encoder))
        return self._read_tuning[1]

    @property
    def tuning_note(self) -> str | None:
        """How the index has changed since it was tuned, in one sentence; None if it has not."""
        from retrieval.tuning.record import TunedFor

        tuning = self.tuning
        if tuning is None or tuning.tuned_for.generation == self.index.info()["generation"]:
            return None
        return tuning.note(TunedFor.of(self.index, self.encoder))

    def _tuned(self) -> Tuning:
        tuning = self.tuning
        if not self.encoder.submodel(None).is_full:
            raise ValueError(
                f"{self.encoder.name} is only the extracted submodel "
                f"{self.encoder.submodel(None)}; choosing among submodels needs the whole encoder"
            )
        if tuning is None:
            raise ValueError(
                f"{self.index.path} was never tuned with encoder {self.encoder.name}; "
                f"run `matvit tune {self.index.path}` first, or name a submodel"
            )
        return tuning

    def _calibrate(self, hits: Hits) -> Hits:
        """Bring scores onto the full encoder's scale."""
        if self.encoder.submodel(hits.submodel).is_full or not hits.hits:
            return hits
        scale = self._tuned().scales.get(hits.submodel)
        if scale is None:
            known = ", ".join(self._tuned().scales)
            raise ValueError(
                f"the scores of {hits.submodel} were not measured when {self.index.path} was "
                f"tuned; those of {known} were"
            )
        scores = scale.to_full(np.array([hit.score for hit in hits]))
        pairs = zip(hits.hits, scores, strict=True)
        return replace(hits, hits=tuple(replace(hit, score=float(new)) for hit, new in pairs))
