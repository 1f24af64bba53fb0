"""Choosing widths block by block, by a table of what each costs in quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import merge
from itertools import islice

from matvit import Submodel

Table = Sequence[Mapping[int, float]]
"""Per block: the distortion of keeping a width there, by width."""


def best_sums(table: Table, hidden_dim: int, keep: int = 1) -> dict[int, list[Submodel]]:
    """Find the submodels of least total distortion for every total width.

    Compute depends on the sum of the widths alone, so this is the best for every budget. Dynamic
    programming over the blocks: exact for distortions that add up, and quick at any depth, where
    enumeration is not (4^12 mixes of four sizes in 12 blocks).

    Args:
        table: What each width costs in each block.
        hidden_dim: Hidden units of a full block.
        keep: Submodels per total, best first.

    Returns:
        Submodels by their sum of widths, ascending.

    Raises:
        ValueError: If a block has no widths or `keep` is below 1.
    """
    if keep < 1 or not table or not all(table):
        raise ValueError(f"expected widths for every block and keep of at least 1, got {keep}")
    best: dict[int, list[tuple[float, tuple[int, ...]]]] = {0: [(0.0, ())]}
    for block in table:
        longer: dict[int, list[list[tuple[float, tuple[int, ...]]]]] = {}
        for total, partial in best.items():
            for width, cost in block.items():
                grown = [(so_far + cost, (*widths, width)) for so_far, widths in partial]
                longer.setdefault(total + width, []).append(grown)
        best = {total: list(islice(merge(*lists), keep)) for total, lists in longer.items()}
    return {
        total: [Submodel(widths, hidden_dim) for _, widths in best[total]] for total in sorted(best)
    }
