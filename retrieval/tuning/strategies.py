"""Ways to search the submodels of an encoder for those that keep the most retrieval."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from matvit import (
    Granularity,
    MatViTConfig,
    Submodel,
    count_macs,
    mix_n_match,
    neighbouring_mixes,
    trained_sizes,
)
from retrieval.tuning.distortion import best_sums
from retrieval.tuning.trial import Trial


class Strategy(Protocol):
    """Decides which submodels are worth asking an index with."""

    def search(self, trial: Trial) -> None:
        """Ask with submodels; the best of `trial.searched` are the outcome."""

    @property
    def name(self) -> str:
        """What to call it."""


@dataclass(frozen=True)
class TrainedSizes:
    """Only the sizes that were trained in every block: S, M, L, XL."""

    name: str = "trained"

    def search(self, trial: Trial) -> None:
        """Ask with the four."""
        trial.ask(trained_sizes(trial.config))


@dataclass(frozen=True)
class PaperRule:
    """Widths that never decrease with depth, in the smallest steps.

    These are the trained sizes and the widening mixes of two neighbouring ones.

    References:
        MatFormer, section 3.3. https://arxiv.org/abs/2310.07707
    """

    name: str = "paper"

    def search(self, trial: Trial) -> None:
        """Ask with all of them: 19 for 6 blocks, 37 for 12."""
        trial.ask(paper_rule(trial.config))


@dataclass(frozen=True)
class Monotone:
    """All submodels that widen or narrow with depth: 164 for 6 blocks, 906 for 12."""

    name: str = "monotone"

    def search(self, trial: Trial) -> None:
        """Ask with all of them."""
        trial.ask(monotone(trial.config))


@dataclass(frozen=True)
class RandomMixes:
    """Submodels drawn at random from all mixes of the four sizes, and the trained sizes."""

    count: int = 40
    seed: int = 0
    name: str = "random"

    def search(self, trial: Trial) -> None:
        """Ask with as many as `count`."""
        rng = random.Random(self.seed)  # noqa: S311 -- nothing here is secret
        widths = _widths(trial.config)
        drawn = [
            Submodel(tuple(rng.choices(widths, k=trial.config.depth)), trial.config.hidden_dim)
            for _ in range(self.count)
        ]
        trial.ask([*trained_sizes(trial.config), *drawn])


@dataclass(frozen=True)
class ByProxy:
    """All monotone submodels embed the queries; those that stay closest to full ask the index."""

    keep: int = 40
    name: str = "proxy"

    def search(self, trial: Trial) -> None:
        """Embed with all, ask with the best for their cost."""
        candidates = monotone(trial.config)
        distortions = dict(zip(candidates, trial.distortions(candidates), strict=True))
        chosen = sorted(candidates, key=lambda each: (_macs(trial, each), distortions[each]))
        front, least = [], float("inf")
        for each in chosen:
            if distortions[each] < least:
                front.append(each)
                least = distortions[each]
        trial.ask([*trained_sizes(trial.config), *spread(trial.config, front, self.keep)])


@dataclass(frozen=True)
class ByDistortion:
    """Mixes of two neighbouring sizes, by a table of what each block costs.

    Around each trained size, one block at a time is made as wide as in the next smaller and in the
    next larger one, and its neighbour distortion noted. Those of a mix are taken to add up, seen
    from the smaller size and from the larger one, and weighted by how near it is to either. Dynamic
    programming finds the mixes of least distortion for every total width; they ask the index, and
    so do those of the paper's rule, which sums cannot rule out.
    """

    keep: int = 3
    name: str = "distortion"

    def search(self, trial: Trial) -> None:
        """Measure the table, then ask with the best mixes and the trained sizes."""
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
            for mix in self._best(small, large, wide, distortion)
        ]
        trial.ask([*paper_rule(trial.config), *chosen])

    def _best(
        self, small: Submodel, large: Submodel, wide: int, distortion: dict[Submodel, float]
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
        return best_sums(table, small.hidden_dim, self.keep)[total]


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        ByDistortion(), ByProxy(), Monotone(), PaperRule(), RandomMixes(), TrainedSizes(),
    )
}  # fmt: skip
"""Every strategy, by name."""


def paper_rule(config: MatViTConfig) -> list[Submodel]:
    """Return the trained sizes and the widening mixes of two neighbouring ones."""
    widening = [
        each for each in neighbouring_mixes(config) if list(each.widths) == sorted(each.widths)
    ]
    return [*trained_sizes(config), *widening]


def monotone(config: MatViTConfig) -> list[Submodel]:
    """Return all submodels that widen or narrow with depth, cheapest first."""
    widening = mix_n_match(config)
    both = {*widening, *(Submodel(each.widths[::-1], each.hidden_dim) for each in widening)}
    return sorted(both, key=lambda each: (count_macs(config, each), each.widths))


def spread(config: MatViTConfig, submodels: Sequence[Submodel], limit: int) -> list[Submodel]:
    """Keep at most `limit` submodels, evenly over the range of their cost."""
    ordered = sorted(submodels, key=lambda each: (count_macs(config, each), each.widths))
    if len(ordered) <= limit:
        return ordered
    low, high = (count_macs(config, each) for each in (ordered[0], ordered[-1]))
    step = (high - low) / (limit - 1)
    targets = [low + step * number for number in range(limit)]
    nearest = {
        min(ordered, key=lambda each: abs(count_macs(config, each) - target)) for target in targets
    }
    return [each for each in ordered if each in nearest]


def _with_block(base: Submodel, block: int, other: Submodel) -> Submodel:
    """Return `base` with the width that `other` has in one block."""
    widths = (*base.widths[:block], other.widths[block], *base.widths[block + 1 :])
    return Submodel(widths, base.hidden_dim)


def _widths(config: MatViTConfig) -> list[int]:
    return [size.width(config.hidden_dim) for size in Granularity]


def _macs(trial: Trial, submodel: Submodel) -> int:
    return count_macs(trial.config, submodel)
