"""`Where`: which images of an index may be found, by name, class and time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from indexing.corpus.selection import Selection, Sieve

_AGE = re.compile(r"(\d{1,6})\s*(h|d|w|y)", re.IGNORECASE)
_DAYS = {"h": 1 / 24, "d": 1, "w": 7, "y": 365.25}
_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Where:
    """A filter on the images of an index: all of its conditions must hold.

    Patterns are those of `Corpus.open`: one without a slash is compared with the name of every
    file and folder, one with slashes with the path from the root on; `*` and `?` stop at slashes,
    `**` does not; large and small letters are the same.

    Examples:
        >>> where = Where(inside=("holiday/**",), outside=("*.gif",))
        >>> paths = ["holiday/a.jpg", "holiday/b.gif", "work/c.jpg"]
        >>> where.mask(paths, np.full(3, -1), None, np.zeros(3)).tolist()
        [True, False, False]

    Args:
        inside: Patterns; if there are any, one must name the image.
        outside: Patterns of what is left out.
        labels: Names of classes; if there are any, the image must be of one.
        newer: Time after which its file was last modified.
        older: Time before which it was. A file whose time is not known is neither.

    Raises:
        ValueError: If a pattern is empty.
    """

    inside: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    newer: datetime | None = None
    older: datetime | None = None

    def __post_init__(self) -> None:
        Selection.of(self.inside, self.outside, labels=False)

    @property
    def lets_all_through(self) -> bool:
        """Whether there is no condition."""
        return self == Where()

    def mask(
        self,
        paths: Sequence[str],
        labels: Int64[ndarray, " images"],
        class_names: Sequence[str] | None,
        mtimes_ns: Int64[ndarray, " images"],
    ) -> Bool[ndarray, " images"]:
        """Mark what it lets through, of images given by what is known about them.

        Args:
            paths: Names of the images.
            labels: Their classes, -1 for none.
            class_names: What the classes are called; None if there are none.
            mtimes_ns: When their files were last modified, -1 where nobody knows.

        Raises:
            ValueError: If there is no class of a name; the message names some that there are.
        """
        mask = np.ones(len(paths), dtype=bool)
        if self.labels:
            mask &= np.isin(labels, [_number(name, class_names or ()) for name in self.labels])
        if self.newer is not None:
            mask &= mtimes_ns > _nanoseconds(self.newer)
        if self.older is not None:
            mask &= (mtimes_ns >= 0) & (mtimes_ns < _nanoseconds(self.older))
        if self.inside or self.outside:
            sieve = Sieve(Selection.of(self.inside, self.outside, labels=False))
            left = np.flatnonzero(mask)
            mask[left] = [sieve.wants(paths[row]) for row in left.tolist()]
        return mask


def parse_time(text: str, now: datetime | None = None) -> datetime:
    """Read a time as people type it: a date, a date with a time, or an age.

    Args:
        text: `2026-01-31`, `2026-01-31T18:00`, in local time unless it says another, or an age
            such as `12h`, `30d`, `2w`, `1y`.
        now: What an age counts from.

    Raises:
        ValueError: If it is none of these.
    """
    if age := _AGE.fullmatch(text.strip()):
        begin = now or datetime.now(UTC)
        try:
            return begin - timedelta(days=int(age[1]) * _DAYS[age[2].lower()])
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{text!r} is no time; write one such as 2026-01-31, 2026-01-31T18:00 or 30d"
        ) from None


def _nanoseconds(time: datetime) -> int:
    return round(time.timestamp()) * 1_000_000_000


def _number(name: str, class_names: Sequence[str]) -> int:
    if name in class_names:
        return class_names.index(name)
    if not class_names:
        raise ValueError(f"no class {name!r}: the images of this index have no classes")
    near = get_close_matches(name, class_names, _NAMED) or class_names[:_NAMED]
    more = len(class_names) - len(near)
    others = f" and {more:,} more" if more else ""
    raise ValueError(f"no class {name!r} in this index; it has {', '.join(near)}{others}")
