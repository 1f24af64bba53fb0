"""What people type for submodels on the command line."""

from __future__ import annotations

import re

from matvit import MatViTConfig, Submodel, mix_n_match

MIXES = 12
"""How many Mix'n'Match submodels the word `mix` stands for."""


def parse_sizes(text: str, config: MatViTConfig) -> list[Submodel]:
    """Read a list of submodels, separated by commas.

    A run such as `4xS` begins a submodel that goes on until all blocks have a width, so
    `S,2xM,4xXL,mix` is S, one mixed submodel of six blocks, and a spread of Mix'n'Match ones.

    Raises:
        ValueError: If a part cannot be read, or runs do not add up to the number of blocks.
    """
    chosen: list[Submodel] = []
    for words in _group([word.strip() for word in text.split(",")], config.depth):
        if words == "mix":
            chosen += mix_n_match(config, MIXES)
        else:
            chosen.append(Submodel.parse(words, depth=config.depth, hidden_dim=config.hidden_dim))
    return list(dict.fromkeys(chosen))


def _group(words: list[str], depth: int) -> list[str]:
    """Join the runs that make up one submodel."""
    groups: list[str] = []
    runs: list[str] = []
    blocks = 0
    for word in words:
        run = re.match(r"([0-9]{1,4})\s*[x*]", word)
        if run is None and runs:
            raise ValueError(f"{','.join(runs)} describes {blocks} blocks, not {depth}")
        if run is None:
            groups.append(word)
            continue
        runs.append(word)
        blocks += int(run[1])
        if blocks >= depth:
            groups.append(",".join(runs))
            runs, blocks = [], 0
    if runs:
        raise ValueError(f"{','.join(runs)} describes {blocks} blocks, not {depth}")
    return groups
