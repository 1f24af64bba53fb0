"""Which submodels are worth considering.

References:
    MatFormer, section 3.3 (Mix'n'Match): any size in any block gives a working encoder; the
    paper's rule of thumb keeps widths non-decreasing with depth, in the smallest steps.
    https://arxiv.org/abs/2310.07707
"""

from __future__ import annotations

import dataclasses
import random
from itertools import combinations_with_replacement, pairwise

from matvit.config import MatViTConfig
from matvit.cost import count_macs
from matvit.submodel import Granularity, Submodel, preset_merges


def trained_sizes(config: MatViTConfig) -> list[Submodel]:
    """Return the four sizes that training optimises: S, M, L, XL."""
    return [
        Submodel.uniform(size, depth=config.depth, hidden_dim=config.hidden_dim)
        for size in Granularity
    ]


def mix_n_match(config: MatViTConfig, limit: int | None = None) -> list[Submodel]:
    """Return the submodels whose widths never decrease with depth, cheapest first.

    There are C(depth + 3, 3) of them, the four trained sizes included: 84 for 6 blocks, 455
    for 12.

    Args:
        config: The model they are cut from.
        limit: Keep at most this many, spread evenly over the range of MACs, the smallest and
            the largest always among them. None keeps all.

    Raises:
        ValueError: If `limit` is below 2.

    Examples:
        >>> config = MatViTConfig(img_size=64, patch_size=8, embed_dim=256, depth=6, num_heads=4)
        >>> len(mix_n_match(config))
        84
        >>> [str(submodel) for submodel in mix_n_match(config, limit=4)]
        ['S', '2xM,4xL', '1xM,2xL,3xXL', 'XL']
    """
    submodels = [Submodel(chosen, config.hidden_dim) for chosen in _monotone_widths(config)]
    submodels.sort(key=lambda submodel: (count_macs(config, submodel), submodel.sort_key))
    return submodels if limit is None else _spread(config, submodels, limit)


def neighbouring_mixes(config: MatViTConfig) -> list[Submodel]:
    """Return the mixes of two sizes next to each other, cheapest first.

    Each is one size up to some block and the other from there on, the larger one last or first:
    the smallest steps there are, 30 of them for 6 blocks.
    """
    widening = _neighbouring_widths(config)
    submodels = [
        Submodel(widths, config.hidden_dim)
        for widths in [*widening, *(widths[::-1] for widths in widening)]
    ]
    return sorted(submodels, key=lambda submodel: (count_macs(config, submodel), submodel.sort_key))


def random_submodel(config: MatViTConfig, seed: int) -> Submodel:
    """Draw a submodel to train on, so that sizes nobody trained do not fall behind.

    A third of the draws are one size in every block, M or L (the smallest and the largest belong
    into every step anyway); a third are mixes of two neighbouring sizes, the ones that cost least
    quality; a third are any mixes. Mixes widen with depth or, as often, narrow.

    Returns:
        The same submodel for the same seed.

    References:
        The sandwich rule (smallest, largest and random widths in every step): Universally
        slimmable networks, section 3.2. https://arxiv.org/abs/1903.05134
    """
    rng = random.Random(seed)  # noqa: S311 -- nothing here is secret
    kind = rng.randrange(3)
    if kind == 0:
        size = rng.choice([Granularity.M, Granularity.L])
        return Submodel.uniform(size, depth=config.depth, hidden_dim=config.hidden_dim)
    # A single block has no mixes of two sizes.
    mixes = (kind == 1 and _neighbouring_widths(config)) or _monotone_widths(config)
    chosen = rng.choice(mixes)
    return Submodel(chosen if rng.random() < 0.5 else chosen[::-1], config.hidden_dim)


def random_schedule(config: MatViTConfig, seed: int) -> Submodel:
    """Draw a submodel that merges tokens, to train on both axes at once.

    A third of the draws are one of the four sizes in every block, the others what `random_submodel`
    draws. A third of them merge as the preset does; the others merge an eighth to half of the patch
    tokens that are left in one to three blocks, but never in the last one, where it changes nothing
    for the class token.

    Returns:
        The same submodel for the same seed.
    """
    rng = random.Random(f"{seed}~")  # noqa: S311 -- draws of its own, and nothing here is secret
    submodel = random_submodel(config, seed)
    if rng.randrange(3) == 0:
        size = rng.choice(list(Granularity))
        submodel = Submodel.uniform(size, depth=config.depth, hidden_dim=config.hidden_dim)
    patches, blocks = config.patches(), range(max(1, config.depth - 1))
    merged = list(preset_merges(config.depth, patches))
    if rng.randrange(3):
        merged, left = [0] * config.depth, patches
        for block in sorted(rng.sample(blocks, min(len(blocks), rng.randint(1, 3)))):
            merged[block] = min(max(1, left * rng.randint(1, 4) // 8), left // 2)
            left -= merged[block]
    return dataclasses.replace(submodel, merged=tuple(merged), patches=patches)


def _neighbouring_widths(config: MatViTConfig) -> list[tuple[int, ...]]:
    """Return the non-decreasing mixes of two sizes next to each other."""
    sizes = list(Granularity)
    return [
        (small.width(config.hidden_dim),) * (config.depth - larger)
        + (large.width(config.hidden_dim),) * larger
        for small, large in pairwise(sizes)
        for larger in range(1, config.depth)
    ]


def _monotone_widths(config: MatViTConfig) -> list[tuple[int, ...]]:
    widths = [size.width(config.hidden_dim) for size in Granularity]
    return list(combinations_with_replacement(widths, config.depth))


def _spread(config: MatViTConfig, submodels: list[Submodel], limit: int) -> list[Submodel]:
    """Pick `limit` of the submodels (sorted by cost) closest to evenly spaced costs."""
    if limit < 2:
        raise ValueError(f"limit must be at least 2 (the smallest and the largest), got {limit}")
    costs = {submodel: count_macs(config, submodel) for submodel in submodels}
    low, high = costs[submodels[0]], costs[submodels[-1]]
    targets = [low + (high - low) * step / (limit - 1) for step in range(limit)]
    # Of several mixes at one cost, the one in the smallest steps: the least spread of widths.
    picked = {
        min(submodels, key=lambda s: (abs(costs[s] - target), s.widths[-1] - s.widths[0]))
        for target in targets
    }
    return sorted(picked, key=lambda submodel: (costs[submodel], submodel.sort_key))
