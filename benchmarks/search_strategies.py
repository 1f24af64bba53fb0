"""Other ways to search the submodels than the product's, each a function that asks a trial."""

from __future__ import annotations

import random
from collections.abc import Callable

from matvit import Granularity, MatViTConfig, Submodel, count_macs, mix_n_match, trained_sizes
from retrieval.tuning.candidates import (
    STRATEGY,
    ask_candidates,
    ask_widths,
    paper_rule,
    spread,
)
from retrieval.tuning.trial import Trial

DRAWN, KEPT, SEED = 40, 40, 0


def ask_trained(trial: Trial) -> None:
    """Only the sizes that were trained in every block: S, M, L, XL."""
    trial.ask(trained_sizes(trial.config))


def ask_paper(trial: Trial) -> None:
    """Widths that never decrease with depth, in the smallest steps: 19 for 6 blocks, 37 for 12.

    References:
        MatFormer, section 3.3. https://arxiv.org/abs/2310.07707
    """
    trial.ask(paper_rule(trial.config))


def ask_monotone(trial: Trial) -> None:
    """All submodels that widen or narrow with depth: 164 for 6 blocks, 906 for 12."""
    trial.ask(monotone(trial.config))


def ask_random(trial: Trial) -> None:
    """Submodels drawn at random from all mixes of the four sizes, and the trained sizes."""
    rng = random.Random(SEED)  # noqa: S311 -- nothing here is secret
    config = trial.config
    widths = [size.width(config.hidden_dim) for size in Granularity]
    drawn = [
        Submodel(tuple(rng.choices(widths, k=config.depth)), config.hidden_dim)
        for _ in range(DRAWN)
    ]
    trial.ask([*trained_sizes(config), *drawn])


def ask_by_proxy(trial: Trial) -> None:
    """All monotone submodels embed the queries; those that stay closest to full ask the index."""
    candidates = monotone(trial.config)
    distortions = dict(zip(candidates, trial.distortions(candidates), strict=True))
    by_cost = sorted(
        candidates, key=lambda each: (count_macs(trial.config, each), distortions[each])
    )
    front, least = [], float("inf")
    for each in by_cost:
        if distortions[each] < least:
            front.append(each)
            least = distortions[each]
    trial.ask([*trained_sizes(trial.config), *spread(trial.config, front, KEPT)])


def monotone(config: MatViTConfig) -> list[Submodel]:
    """Return all submodels that widen or narrow with depth, cheapest first."""
    widening = mix_n_match(config)
    both = {*widening, *(Submodel(each.widths[::-1], each.hidden_dim) for each in widening)}
    return sorted(both, key=lambda each: (count_macs(config, each), each.widths))


STRATEGIES: dict[str, Callable[[Trial], None]] = {
    STRATEGY: ask_candidates,
    "distortion": ask_widths,
    "proxy": ask_by_proxy,
    "monotone": ask_monotone,
    "paper": ask_paper,
    "random": ask_random,
    "trained": ask_trained,
}
"""Every strategy, by name."""
