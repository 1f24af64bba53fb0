"""Which submodels an index is worth asking with, without asking with all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import merge
from itertools import islice, pairwise

from matvit import MatViTConfig, Submodel, count_macs, neighbouring_mixes, trained_sizes
from retrieval.tuning.trial import Trial

STRATEGY = "distortion"
"""What this way to search is called beside others; see `benchmarks/search_strategies.py`."""

KEPT = 3
"""Mixes that ask the index, of those with the same sizes and the same number of wider blocks."""

Table = Sequence[Mapping[int, float]]
"""Per block: the distortion of keeping a width there, by width."""


def ask_candidates(trial: Trial) -> None:
    """Ask with mixes of two neighbouring sizes, found by a table of what each block costs.

    Around each trained size, one block at a time is made as wide as in the next smaller and in the
    next larger one, and its neighbour distortion noted. Those of a mix are taken to add up, seen
    from the smaller size and from the larger one, and weighted by how near it is to either. Dynamic
    programming finds the mixes of least distortion for every total width; they ask the index, and
    so do those of the paper's rule, which sums cannot rule out, and the trained sizes in 8 bits.
    """
    sizes = trained_sizes(trial.config)
    singles = [
        _with_block(base, block, other)
        for small, large in pairwise(sizes)
        for base, other in ((small, large), (large, small))
        for block in range(trial.config.depth)
    ]
    known = [*sizes, *singles]
    distortion = dict(zip(known, trial.distortions(known), strict=True))
    chosen = [
        mix
        for small, large in pairwise(sizes)
        for wide in range(1, trial.config.depth)
        for mix in _best_mixes(small, large, wide, distortion)
    ]
    trial.ask([*paper_rule(trial.config), *chosen, *trial.rounded])


def paper_rule(config: MatViTConfig) -> list[Submodel]:
    """Return the trained sizes and the widening mixes of two neighbouring ones: 19 for 6 blocks.

    References:
        MatFormer, section 3.3: widths that never decrease with depth, in the smallest steps.
        https://arxiv.org/abs/2310.07707
    """
    widening = [
        each for each in neighbouring_mixes(config) if list(each.widths) == sorted(each.widths)
    ]
    return [*trained_sizes(config), *widening]


def spread(config: MatViTConfig, submodels: Sequence[Submodel], limit: int) -> list[Submodel]:
    """Keep at most `limit` submodels, evenly over the range of their cost."""
    ordered = sorted(submodels, key=lambda each: (count_macs(config, each), each.sort_key))
    if len(ordered) <= limit:
        return ordered
    low, high = (count_macs(config, each) for each in (ordered[0], ordered[-1]))
    step = (high - low) / (limit - 1)
    targets = [low + step * number for number in range(limit)]
    nearest = {
        min(ordered, key=lambda each: abs(count_macs(config, each) - target)) for target in targets
    }
    return [each for each in ordered if each in nearest]


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


def _best_mixes(
    small: Submodel, large: Submodel, wide: int, distortion: Mapping[Submodel, float]
) -> list[Submodel]:
    """Return the mixes with `wide` blocks of the larger size that should be distorted least."""
    narrow, full = small.widths[0], large.widths[0]
    depth = len(small.widths)
    share = wide / depth  # how near to the larger size
    table = []
    for block in range(depth):
        gained = distortion[_with_block(small, block, large)] - distortion[small]
        lost = distortion[_with_block(large, block, small)] - distortion[large]
        table.append({narrow: share * lost, full: (1 - share) * gained})
    total = wide * full + (depth - wide) * narrow
    return best_sums(table, small.hidden_dim, KEPT)[total]


def _with_block(base: Submodel, block: int, other: Submodel) -> Submodel:
    """Return `base` with the width that `other` has in one block."""
    widths = (*base.widths[:block], other.widths[block], *base.widths[block + 1 :])
    return Submodel(widths, base.hidden_dim)
