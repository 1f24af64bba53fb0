"""Which submodels an index is worth asking with, without asking with all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import merge
from itertools import islice, pairwise, product
from typing import NamedTuple

from matvit import (
    Granularity,
    MatViTConfig,
    Submodel,
    count_block_macs,
    count_macs,
    neighbouring_mixes,
    parse_submodel,
    trained_sizes,
)
from retrieval.tuning.trial import Trial

STRATEGY = "both axes"
"""What this way to search is called beside others; see `benchmarks/search_strategies.py`."""

KEPT = 3
"""Mixes that ask the index, of those with the same sizes and the same number of wider blocks."""

Table = Sequence[Mapping[int, float]]
"""Per block: the distortion of keeping a width there, by width; or of merging so many tokens."""

SCHEDULES = 8
"""Submodels that merge tokens and ask the index, between two neighbouring sizes."""

_SHARES = (1, 2, 3, 4)
_OF = 8
"""Eighths of the patch tokens that a block may merge."""


def ask_candidates(trial: Trial) -> None:
    """Ask with mixes of sizes, with mixes that merge tokens, and with 8 bits.

    Both axes are searched alike: by what each block costs alone, which is taken to add up.
    """
    ask_widths(trial)
    ask_merging(trial)
    trial.ask(trial.rounded)


def ask_widths(trial: Trial) -> None:
    """Ask with mixes of two neighbouring sizes, found by a table of what each block costs.

    Around each trained size, one block at a time is made as wide as in the next smaller and in the
    next larger one, and its neighbour distortion noted. Those of a mix are taken to add up, seen
    from the smaller size and from the larger one, and weighted by how near it is to either. Dynamic
    programming finds the mixes of least distortion for every total width; they ask the index, and
    so do those of the paper's rule, which sums cannot rule out.
    """
    sizes = trained_sizes(trial.config)
    distortion = _distortions_by_block(trial)
    chosen = [
        mix
        for small, large in pairwise(sizes)
        for wide in range(1, trial.config.depth)
        for mix in _best_mixes(small, large, wide, distortion)
    ]
    trial.ask([*paper_rule(trial.config), *chosen])


def ask_merging(trial: Trial) -> None:
    """Ask with submodels that merge tokens, found by the same kind of table.

    What merging costs is noted at the smallest size, for every block and for some shares of the
    patch tokens. Beside that stands what widths cost between two neighbouring sizes, halfway. The
    best sums of both are the least distortion for every amount of compute (see `best_schedules`);
    some of them, spread over it, ask the index. So does the preset of every size.
    """
    config, sizes = trial.config, trained_sizes(trial.config)
    merging = _merging_table(trial)
    distortion = _distortions_by_block(trial)
    chosen = [parse_submodel(config, f"{size.value}~") for size in Granularity]
    for small, large in pairwise(sizes):
        found = best_schedules(config, _width_table(small, large, 0.5, distortion), merging)
        chosen += spread(config, [each for each in found if each.merged], SCHEDULES)
    trial.ask(dict.fromkeys(chosen))


class _Start(NamedTuple):
    """First blocks of a submodel: what they cost, and what they merge and keep."""

    macs: int
    distortion: float
    blocks: tuple[tuple[int, int], ...]


def best_schedules(config: MatViTConfig, widths: Table, merging: Table) -> list[Submodel]:
    """Find submodels of both axes that nothing cheaper should be distorted less than.

    Dynamic programming over the blocks: what is to come depends on the tokens that are left alone.
    So of all beginnings that leave as many those are kept that cost less or distort less than any
    other. Exact for distortions that add up.

    Args:
        config: Architecture.
        widths: What each width costs in each block.
        merging: What each number of merged tokens costs in each block.

    Returns:
        Submodels, cheapest first.
    """
    front: dict[int, list[_Start]] = {config.patches(): [_Start(0, 0.0, ())]}
    for by_width, by_merged in zip(widths, merging, strict=True):
        longer: dict[int, list[_Start]] = {}
        for left, starts in front.items():
            for merged, width in product(by_merged, by_width):
                if merged > left // 2:
                    continue
                macs = count_block_macs(config, left, merged, width)
                cost = by_merged[merged] + by_width[width]
                longer.setdefault(left - merged, []).extend(
                    _Start(
                        start.macs + macs, start.distortion + cost, (*start.blocks, (merged, width))
                    )
                    for start in starts
                )
        front = {left: _undominated(starts) for left, starts in longer.items()}
    best = _undominated([start for starts in front.values() for start in starts])
    return [
        Submodel(
            tuple(width for _, width in start.blocks),
            config.hidden_dim,
            merged=tuple(merged for merged, _ in start.blocks),
            patches=config.patches(),
        )
        for start in best
    ]


def _undominated(starts: list[_Start]) -> list[_Start]:
    """Keep those that nothing else undercuts in both, cheapest first."""
    kept: list[_Start] = []
    for start in sorted(starts):
        if not kept or start.distortion < kept[-1].distortion:
            kept.append(start)
    return kept


def _merging_table(trial: Trial) -> Table:
    """Measure what merging in one block alone costs; none merge in the last one.

    There it would leave the class token as it is.
    """
    config, (smallest, *_) = trial.config, trained_sizes(trial.config)
    patches, blocks = config.patches(), range(config.depth - 1)
    counts = sorted({patches * share // _OF for share in _SHARES} - {0})
    singles = [
        replace(smallest, merged=_single(config.depth, block, count), patches=patches)
        for block in blocks
        for count in counts
    ]
    base, *found = trial.distortions([smallest, *singles])
    costs = iter(found)
    table = [{0: 0.0, **{count: next(costs) - base for count in counts}} for _ in blocks]
    return [*table, {0: 0.0}]


def _single(depth: int, block: int, count: int) -> tuple[int, ...]:
    return tuple(count if place == block else 0 for place in range(depth))


def _distortions_by_block(trial: Trial) -> dict[Submodel, float]:
    """Measure the trained sizes, and each with one block of its neighbours'."""
    sizes = trained_sizes(trial.config)
    singles = [
        _with_block(base, block, other)
        for small, large in pairwise(sizes)
        for base, other in ((small, large), (large, small))
        for block in range(trial.config.depth)
    ]
    known = [*sizes, *singles]
    return dict(zip(known, trial.distortions(known), strict=True))


def _width_table(
    small: Submodel, large: Submodel, share: float, distortion: Mapping[Submodel, float]
) -> Table:
    """What the widths of two sizes cost in each block of a mix, seen from both.

    Args:
        small: The smaller size.
        large: The larger size.
        share: How near the mix is to the larger one.
        distortion: Of both, and of each with one block of the other's.
    """
    table = []
    for block, (narrow, full) in enumerate(zip(small.widths, large.widths, strict=True)):
        gained = distortion[_with_block(small, block, large)] - distortion[small]
        lost = distortion[_with_block(large, block, small)] - distortion[large]
        table.append({narrow: share * lost, full: (1 - share) * gained})
    return table


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
    table = _width_table(small, large, wide / depth, distortion)
    total = wide * full + (depth - wide) * narrow
    return best_sums(table, small.hidden_dim, KEPT)[total]


def _with_block(base: Submodel, block: int, other: Submodel) -> Submodel:
    """Return `base` with the width that `other` has in one block."""
    widths = (*base.widths[:block], other.widths[block], *base.widths[block + 1 :])
    return Submodel(widths, base.hidden_dim)
