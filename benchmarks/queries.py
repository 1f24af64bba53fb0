"""Sets of queries, put together anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval.ground_truth import Wanted
from retrieval.tuning.sample import Queries


def concatenate(parts: Sequence[Queries]) -> Queries:
    """Put several sets of queries to the same index together."""
    copies = max(part.wanted.own.shape[1] for part in parts)
    own = [
        np.pad(
            part.wanted.own,
            ((0, 0), (0, copies - part.wanted.own.shape[1])),
            constant_values=-1,
        )
        for part in parts
    ]
    wanted = Wanted(
        np.concatenate(own),
        np.concatenate([part.wanted.labels for part in parts]),
        np.concatenate([part.wanted.total for part in parts]),
    )
    return Queries(pixels=np.concatenate([part.pixels for part in parts]), wanted=wanted)
