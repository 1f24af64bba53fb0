"""Images that are nearly the same, by their stored vectors, and which of them to keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from indexing.store.rows import column
from matvit import progress_of

if TYPE_CHECKING:
    from indexing.index import ImageIndex

NEARLY_SAME = 0.98
"""Cosine of two stored vectors from which on their images are taken for the same picture."""

_TOGETHER = 512
_FIRST, _GROWTH = 16, 8


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """An image and its near-duplicates.

    Attributes:
        kept: Row of the image to keep: the one with the most pixels, of these the largest file, of
            these the one that was there first.
        copies: Rows of the others, nearest first.
        scores: Cosine of each with the kept one.
    """

    kept: int
    copies: tuple[int, ...]
    scores: tuple[float, ...]


def find_duplicates(
    index: ImageIndex, above: float = NEARLY_SAME, *, progress: bool = False
) -> list[Duplicates]:
    """Group images that are nearly the same.

    Every image of a group is as near as `above` to the one that is kept: images that are only
    near to each other's neighbours are not drawn together into one group. The search is that of
    the index, so an approximate kind may miss some.

    Args:
        index: The images.
        above: Cosine from which on two are the same, within 0..1.
        progress: Show a progress bar on stderr.

    Returns:
        Groups of two or more, the largest first.

    Raises:
        ValueError: If `above` is out of range.
    """
    if not 0 < above <= 1:
        raise ValueError(f"above must be a cosine above 0 and at most 1, got {above}")
    best_first = _best_first(index)
    taken = np.zeros(len(index), dtype=bool)
    groups = []
    with progress_of("comparing", len(index), unit="img", shown=progress) as bar:
        for start in range(0, len(best_first), _TOGETHER):
            part = best_first[start : start + _TOGETHER]
            for row, near, scores in _neighbours(index, part[~taken[part]], above, taken):
                others = (near != row) & ~taken[near]
                if others.any():
                    copies = near[others]
                    groups.append(
                        Duplicates(
                            kept=row,
                            copies=tuple(copies.tolist()),
                            scores=tuple(scores[others].tolist()),
                        )
                    )
                    taken[copies] = taken[row] = True
            bar.update(len(part))
    return sorted(groups, key=lambda group: (-len(group.copies), group.kept))


def _best_first(index: ImageIndex) -> Int64[ndarray, " images"]:
    """Rows in the order in which somebody would keep them."""
    known = {name: column(index.metadata, name) for name in ("width", "height", "bytes")}
    pixels = known["width"].astype(np.int64) * known["height"]
    return np.lexsort((index.ids, -known["bytes"], -pixels))


def _neighbours(
    index: ImageIndex,
    rows: Int64[ndarray, " rows"],
    above: float,
    taken: Bool[ndarray, " images"],
) -> Iterator[tuple[int, Int64[ndarray, " near"], Float32[ndarray, " near"]]]:
    """Yield for each row all that are near to it; not for those that are taken by then."""
    if not len(rows):
        return
    ids, scores = index.search(index.embeddings[rows], _FIRST)
    for place, row in enumerate(rows.tolist()):
        if taken[row]:
            continue
        near, cosines = ids[place], scores[place]
        while cosines[-1] >= above and len(near) < len(index):
            wider = index.search(index.embeddings[rows[place : place + 1]], _GROWTH * len(near))
            near, cosines = wider[0][0], wider[1][0]
        alike = cosines >= above
        yield row, index.rows_of(near[alike]), cosines[alike]
