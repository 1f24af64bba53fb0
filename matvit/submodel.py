"""Submodels: which part of each feed-forward network an encoder keeps, and how many tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, groupby


class Granularity(StrEnum):
    """The four feed-forward sizes a MatViT is trained at.

    References:
        MatFormer: Nested Transformer for Elastic Inference, section 3.1 (granularities at
        1/8, 1/4, 1/2 and all of the hidden units). https://arxiv.org/abs/2310.07707
    """

    S = "S"
    M = "M"
    L = "L"
    XL = "XL"

    def width(self, hidden_dim: int) -> int:
        """Hidden units kept out of `hidden_dim`."""
        return hidden_dim // {"S": 8, "M": 4, "L": 2, "XL": 1}[self.value]


@dataclass(frozen=True)
class Submodel:
    """An encoder nested in a MatViT: how many hidden units and tokens each block keeps.

    `a <= b` means that `a` is nested in `b`: no block of `a` keeps more hidden units or more tokens
    than the same block of `b`. Like set inclusion this is a partial order, so both `a <= b` and
    `b <= a` can be false.

    Args:
        widths: Hidden units kept, one per block, first block first.
        hidden_dim: Hidden units of a full block.
        int8: Whether weights and activations are rounded to 8 bits, which only ONNX Runtime does,
            and only for queries: `S:int8`.
        merged: Tokens that each block merges into others, between its attention and its
            feed-forward network; empty for none, and so is a row of zeros. See `matvit.merging`.
        patches: Of how many patch tokens; 0 if none are merged. At another size of the input the
            same shares are merged.

    Raises:
        ValueError: If there is no block, a width is outside 1..hidden_dim, or a block merges more
            than half of the patch tokens that it has.

    Examples:
        >>> mix = Submodel.parse("4xS,2xXL", depth=6, hidden_dim=1024)
        >>> mix.widths
        (128, 128, 128, 128, 1024, 1024)
        >>> str(mix), mix.is_full
        ('4xS,2xXL', False)
        >>> mix <= Submodel.uniform(Granularity.XL, depth=6, hidden_dim=1024)
        True
        >>> merging = Submodel.parse("S~2x0,3x16,0", depth=6, hidden_dim=1024, patches=64)
        >>> merging.merged, str(merging)
        ((0, 0, 16, 16, 16, 0), 'S~2x0,3x16,0')
    """

    widths: tuple[int, ...]
    hidden_dim: int
    int8: bool = False
    merged: tuple[int, ...] = ()
    patches: int = 0

    def __post_init__(self) -> None:
        if not self.widths:
            raise ValueError("a submodel needs one width per block, got none")
        for block, width in enumerate(self.widths):
            if isinstance(width, bool) or not isinstance(width, int):
                raise ValueError(f"block {block}: width must be an int, got {width!r}")
            if not 1 <= width <= self.hidden_dim:
                raise ValueError(
                    f"block {block}: width must be within 1..{self.hidden_dim}, got {width}"
                )
        if any(self.merged):
            self._check_merged()
        else:  # the same submodel, however it was written
            object.__setattr__(self, "merged", ())
            object.__setattr__(self, "patches", 0)

    @classmethod
    def uniform(cls, size: Granularity | int, *, depth: int, hidden_dim: int) -> Submodel:
        """Return the submodel that keeps the same width in every block, and all tokens."""
        width = size.width(hidden_dim) if isinstance(size, Granularity) else size
        return cls((width,) * depth, hidden_dim)

    @classmethod
    def parse(cls, text: str, *, depth: int, hidden_dim: int, patches: int = 0) -> Submodel:
        """Read a submodel as people write it.

        `"M"` is M in every block; `"4xS,2xXL"` is S in the first four blocks and XL in the last
        two; a plain number is a width in hidden units, as in `"4x100,2x512"`. After `~` stand the
        tokens that each block merges, written the same way, as in `"S~2x0,2x16,8,0"`; nothing
        after it is the preset, see `preset_merges`. At the end, `":int8"` stands for 8 bits.

        Args:
            text: As written.
            depth: Blocks of the model.
            hidden_dim: Hidden units of a full block.
            patches: Patch tokens of the model; only `~` needs them.

        Raises:
            ValueError: If the text cannot be read or describes another number of blocks.
        """
        sizes, colon, precision = text.partition(":")
        int8 = bool(colon)
        if int8 and precision.strip().lower() != "int8":
            raise ValueError(f"unknown precision {precision.strip()!r} of {text!r}; known: int8")
        sizes, merges, counts = sizes.partition("~")
        widths = _per_block([_parse_run(run, hidden_dim) for run in sizes.split(",")], depth, text)
        merged: tuple[int, ...] = ()
        if merges and not patches:
            raise ValueError(f"to read {text!r} takes the number of patch tokens of the model")
        if merges and not counts.strip():
            merged = preset_merges(depth, patches)
        elif merges:
            merged = _per_block([_parse_count(run) for run in counts.split(",")], depth, text)
        return cls(widths, hidden_dim, int8, merged, patches)

    @property
    def is_full(self) -> bool:
        """Whether every block keeps all its hidden units and tokens, unrounded."""
        return self.is_wide and not self.int8 and not self.merged

    @property
    def is_wide(self) -> bool:
        """Whether every block keeps all its hidden units."""
        return all(width == self.hidden_dim for width in self.widths)

    @property
    def sort_key(self) -> tuple[object, ...]:
        """Puts submodels into one order; those that begin alike stand together."""
        return self.blocks(self.patches), self.int8

    def blocks(self, patches: int) -> tuple[tuple[int, int], ...]:
        """Tokens merged and hidden units kept, of each block.

        Submodels have the same hidden states as long as these are the same.

        Args:
            patches: Patch tokens of the input. The same shares are merged of any number.
        """
        if not self.merged:
            return tuple((0, width) for width in self.widths)
        merged = (count * patches // self.patches for count in self.merged)
        return tuple(zip(merged, self.widths, strict=True))

    def __le__(self, other: Submodel) -> bool:
        if (
            self.hidden_dim != other.hidden_dim
            or len(self.widths) != len(other.widths)
            or (self.merged and other.merged and self.patches != other.patches)
        ):
            raise ValueError(f"{self} and {other} are submodels of different models")
        pairs = zip(self.widths, other.widths, strict=True)
        narrower = all(mine <= theirs for mine, theirs in pairs)
        fewer = all(mine >= theirs for mine, theirs in zip(self._gone, other._gone, strict=True))
        return self.int8 == other.int8 and narrower and fewer

    def __lt__(self, other: Submodel) -> bool:
        return self <= other and self != other

    def __str__(self) -> str:
        names = {size.width(self.hidden_dim): size.value for size in Granularity}
        runs = _runs(self.widths)
        text = ",".join(f"{count}x{names.get(width, width)}" for width, count in runs)
        if len(runs) == 1 and self.widths[0] in names:
            text = names[self.widths[0]]
        if self.merged:
            text += f"~{self._merges()}"
        return text + (":int8" if self.int8 else "")

    @property
    def _gone(self) -> tuple[int, ...]:
        """Tokens that are gone after each block."""
        return tuple(accumulate(self.merged or (0,) * len(self.widths)))

    def _merges(self) -> str:
        """Write what is merged; nothing is the preset."""
        if self.merged == preset_merges(len(self.merged), self.patches):
            return ""
        runs = _runs(self.merged)
        if len(runs) == 1:
            return str(self.merged[0])
        return ",".join(f"{count}x{each}" if count > 1 else str(each) for each, count in runs)

    def _check_merged(self) -> None:
        if len(self.merged) != len(self.widths):
            raise ValueError(
                f"a submodel of {len(self.widths)} blocks needs as many counts of merged tokens, "
                f"got {len(self.merged)}"
            )
        left = self.patches
        for block, count in enumerate(self.merged):
            if isinstance(count, bool) or not isinstance(count, int):
                raise ValueError(f"block {block}: merged tokens must be an int, got {count!r}")
            if not 0 <= count <= left // 2:
                raise ValueError(
                    f"block {block}: it can merge 0..{left // 2} of its {left} patch tokens, "
                    f"got {count}"
                )
            left -= count


def preset_merges(depth: int, patches: int) -> tuple[int, ...]:
    """Tokens that each block merges in `S~`: 0, 0, 16, 20, 0, 0 of 64 in 6 blocks.

    Two blocks merge, at a third and at half of the depth: early tokens have not yet become alike,
    late ones have cost most of what they cost, and every merge takes time of its own.
    """
    merged = [0] * depth
    for block, sixteenths in ((depth // 3, 4), (depth // 2, 5)):
        merged[block] = min(merged[block] + patches * sixteenths // 16, patches // 2)
    return tuple(merged)


def _runs(values: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return each value and how often it stands in a row."""
    return [(value, len(list(run))) for value, run in groupby(values)]


def _per_block(runs: list[tuple[int | None, int]], depth: int, text: str) -> tuple[int, ...]:
    """Spell out runs of a count (None if not written) and a value; one alone is for all blocks."""
    if len(runs) == 1 and runs[0][0] is None:
        return (runs[0][1],) * depth
    values = tuple(value for count, value in runs for _ in range(1 if count is None else count))
    if len(values) != depth:
        raise ValueError(f"submodel {text!r} describes {len(values)} blocks, not {depth}")
    return values


def _parse_count(run: str) -> tuple[int | None, int]:
    """Read one `[COUNTx]TOKENS`."""
    match = re.fullmatch(r"(?:([0-9]{1,4})\s*[x*])?\s*([0-9]{1,9})", run.strip())
    if match is None:
        raise ValueError(
            f"cannot read merged tokens {run.strip()!r}; write a number for every block, "
            "or runs of them as in '2x0,2x16,8,0', or nothing for the preset"
        )
    count, tokens = match.groups()
    if count is not None and int(count) == 0:
        raise ValueError(f"merged tokens {run.strip()!r} repeat a number zero times")
    return (int(count) if count else None), int(tokens)


def _parse_run(run: str, hidden_dim: int) -> tuple[int | None, int]:
    """Read one `[COUNTx]SIZE` into its count (None if not written) and its width."""
    match = re.fullmatch(r"(?:([0-9]{1,4})\s*[x*])?\s*([A-Za-z]+|[0-9]{1,9})", run.strip())
    if match is None:
        raise ValueError(
            f"cannot read submodel part {run.strip()!r}; write S, M, L, XL, a width, "
            "or runs of them as in '4xS,2xXL'"
        )
    count, size = match.groups()
    if count is not None and int(count) == 0:
        raise ValueError(f"submodel part {run.strip()!r} repeats a size zero times")
    if size.isdigit():
        return (int(count) if count else None), int(size)
    known = {granularity.value: granularity for granularity in Granularity}
    if size.upper() not in known:
        raise ValueError(f"unknown size {size!r}; known sizes: {', '.join(known)}")
    return (int(count) if count else None), known[size.upper()].width(hidden_dim)
