"""Which size answers under load: the largest with which answers come in time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

import numpy as np

_WINDOW_S = 2.0  # of arrivals and answers that are looked at
_EVERY_S = 0.1  # between two decisions
_HOLD_S = 2.0  # after a change, before a larger size is tried
_FEWEST = 10  # answers that say something about the slowest of them
_BUSY, _OVERLOADED, _ROOM = 0.8, 0.95, 0.6  # shares of the time that answering may take
_IN_TIME = 0.7  # of the target: below it there is room for more
_FADING = 0.2  # weight of the newest measurement


class Pace:
    """Follows the load: down as soon as answers are late, up again when there is room for long.

    A size is expected to take what it last took or, before it was ever used, what its compute
    lets expect of the others. From that and the arrivals of the last two seconds follows what
    share of the time answering would take. The bounds of going down and up lie apart, or the size
    would swing.

    Not for several threads at once.

    Args:
        macs: Multiply-accumulates of each size that may answer, ascending.
        slo_ms: Milliseconds within which 95 of 100 answers are wanted, from the last byte of the
            question on.
        clock: Seconds that never go back.

    Attributes:
        place: The size in use, as a place in `macs`; the largest at first.

    References:
        Elasticity for load that changes: MatFormer, section 1. https://arxiv.org/abs/2310.07707
    """

    def __init__(
        self, macs: Sequence[int], slo_ms: float, clock: Callable[[], float] = monotonic
    ) -> None:
        if not macs or list(macs) != sorted(macs):
            raise ValueError(f"expected the compute of sizes, ascending, got {list(macs)}")
        if not slo_ms > 0:
            raise ValueError(f"slo_ms must be above 0, got {slo_ms}")
        self.place = len(macs) - 1
        self._macs, self._slo, self._clock = macs, slo_ms, clock
        self._ms: dict[int, float] = {}
        self._arrivals: deque[float] = deque()
        self._answers: deque[tuple[float, float]] = deque()
        self._changed = self._decided = clock()

    def arrived(self) -> None:
        """Note a question."""
        self._arrivals.append(self._clock())

    def worked(self, place: int, ms: float) -> None:
        """Note what an answer cost by a size: milliseconds in which no other could be given."""
        before = self._ms.get(place, ms)
        self._ms[place] = before + _FADING * (ms - before)

    def answered(self, ms: float) -> None:
        """Note how long an answer took in all."""
        self._answers.append((self._clock(), ms))

    def choose(self, waiting_ms: float = 0.0) -> int:
        """Return the size for the next questions.

        Args:
            waiting_ms: How long the oldest of them has waited.
        """
        now = self._clock()
        if now - self._decided < _EVERY_S:
            return self.place
        self._decided = now
        self._forget(now)
        found = self._decide(now, waiting_ms)
        if found != self.place:
            self.place, self._changed = found, now
            self._answers.clear()  # they say nothing about the new size
        return self.place

    def _decide(self, now: float, waiting_ms: float) -> int:
        slowest = self._slowest()
        fitting = max((at for at in range(len(self._macs)) if self._busy(at) <= _BUSY), default=0)
        if waiting_ms > self._slo / 2 or (slowest is not None and slowest > self._slo):
            return max(0, min(self.place - 1, fitting))
        if self._busy(self.place) > _OVERLOADED:
            return min(self.place, fitting)
        is_calm = slowest is None or slowest < _IN_TIME * self._slo
        if is_calm and now - self._changed >= _HOLD_S and self.place + 1 < len(self._macs):
            # What the larger size takes more, the slowest answers will take more too.
            more = self._expected(self.place + 1) - self._expected(self.place)
            in_time = (slowest or 0.0) + more < self._slo
            if in_time and self._busy(self.place + 1) <= _ROOM:
                return self.place + 1
        return self.place

    def _slowest(self) -> float | None:
        """The 95th percentile of what answers took lately; None if there were too few."""
        if len(self._answers) < _FEWEST:
            return None
        return float(np.percentile([ms for _, ms in self._answers], 95))

    def _busy(self, place: int) -> float:
        """Share of the time that answering all would take by a size."""
        return len(self._arrivals) / _WINDOW_S * self._expected(place) / 1000

    def _expected(self, place: int) -> float:
        """Milliseconds that an answer by a size should cost; 0 if nothing was measured yet."""
        if place in self._ms or not self._ms:
            return self._ms.get(place, 0.0)
        near = min(self._ms, key=lambda known: abs(known - place))
        return self._ms[near] * self._macs[place] / self._macs[near]

    def _forget(self, now: float) -> None:
        """Leave behind what was longer ago than the window."""
        while self._arrivals and self._arrivals[0] < now - _WINDOW_S:
            self._arrivals.popleft()
        while self._answers and self._answers[0][0] < now - _WINDOW_S:
            self._answers.popleft()
