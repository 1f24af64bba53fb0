"""Submodels: which part of each feed-forward network an encoder keeps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby


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
    """An encoder nested in a MatViT: how many hidden units each block keeps.

    `a <= b` means that `a` is nested in `b`: no block of `a` keeps more than the same block of
    `b`. Like set inclusion this is a partial order, so both `a <= b` and `b <= a` can be false.

    Args:
        widths: Hidden units kept, one per block, first block first.
        hidden_dim: Hidden units of a full block.
        int8: Whether weights and activations are rounded to 8 bits, which only ONNX Runtime does,
            and only for queries: `S:int8`.

    Raises:
        ValueError: If there is no block or a width is outside 1..hidden_dim.

    Examples:
        >>> mix = Submodel.parse("4xS,2xXL", depth=6, hidden_dim=1024)
        >>> mix.widths
        (128, 128, 128, 128, 1024, 1024)
        >>> str(mix), mix.is_full
        ('4xS,2xXL', False)
        >>> mix <= Submodel.uniform(Granularity.XL, depth=6, hidden_dim=1024)
        True
    """

    widths: tuple[int, ...]
    hidden_dim: int
    int8: bool = False

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

    @classmethod
    def uniform(cls, size: Granularity | int, *, depth: int, hidden_dim: int) -> Submodel:
        """Return the submodel that keeps the same width in every block."""
        width = size.width(hidden_dim) if isinstance(size, Granularity) else size
        return cls((width,) * depth, hidden_dim)

    @classmethod
    def parse(cls, text: str, *, depth: int, hidden_dim: int) -> Submodel:
        """Read a submodel as people write it.

        `"M"` is M in every block; `"4xS,2xXL"` is S in the first four blocks and XL in the last
        two; a plain number is a width in hidden units, as in `"4x100,2x512"`. At the end,
        `":int8"` stands for 8 bits.

        Raises:
            ValueError: If the text cannot be read or describes another number of blocks.
        """
        sizes, colon, precision = text.partition(":")
        int8 = bool(colon)
        if int8 and precision.strip().lower() != "int8":
            raise ValueError(f"unknown precision {precision.strip()!r} of {text!r}; known: int8")
        runs = [_parse_run(run, hidden_dim) for run in sizes.split(",")]
        if len(runs) == 1 and runs[0][0] is None:
            return cls((runs[0][1],) * depth, hidden_dim, int8)
        widths = tuple(width for count, width in runs for _ in range(count or 1))
        if len(widths) != depth:
            raise ValueError(f"submodel {text!r} describes {len(widths)} blocks, not {depth}")
        return cls(widths, hidden_dim, int8)

    @property
    def is_full(self) -> bool:
        """Whether every block keeps all its hidden units, unrounded."""
        return not self.int8 and all(width == self.hidden_dim for width in self.widths)

    def __le__(self, other: Submodel) -> bool:
        if self.hidden_dim != other.hidden_dim or len(self.widths) != len(other.widths):
            raise ValueError(f"{self} and {other} are submodels of different models")
        pairs = zip(self.widths, other.widths, strict=True)
        return self.int8 == other.int8 and all(mine <= theirs for mine, theirs in pairs)

    def __lt__(self, other: Submodel) -> bool:
        return self <= other and self != other

    def __str__(self) -> str:
        runs = [(width, len(list(run))) for width, run in groupby(self.widths)]
        names = {size.width(self.hidden_dim): size.value for size in Granularity}
        end = ":int8" if self.int8 else ""
        if len(runs) == 1 and self.widths[0] in names:
            return names[self.widths[0]] + end
        return ",".join(f"{count}x{names.get(width, width)}" for width, count in runs) + end


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
