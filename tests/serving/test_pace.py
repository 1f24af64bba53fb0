"""The size that answers follows the load."""

from __future__ import annotations

from itertools import pairwise

import pytest

from app.serving.pace import Pace

MACS = (45, 52, 68, 100)


class Day:
    """A server of one thread, simulated: each question takes as long as its size does.

    Questions come at even intervals; the clock is that of the questions, which nobody waits for.
    """

    def __init__(self, slo_ms: float, ms_of_largest: float) -> None:
        self.now = self.free = 0.0
        self.cost = [ms_of_largest * macs / MACS[-1] for macs in MACS]
        self.pace = Pace(MACS, slo_ms, lambda: self.now)

    def ask(self, per_second: float, seconds: float) -> list[tuple[int, float]]:
        """Return the size that answered each question, and its milliseconds."""
        answers = []
        start = self.now
        for number in range(int(per_second * seconds)):
            self.now = start + number / per_second
            self.pace.arrived()
            waits = max(0.0, self.free - self.now)
            place = self.pace.choose(1000 * waits)
            self.free = self.now + waits + self.cost[place] / 1000
            ms = 1000 * (self.free - self.now)
            self.pace.worked(place, self.cost[place])
            self.pace.answered(ms)
            answers.append((place, ms))
        return answers


def test_a_quiet_server_answers_with_the_largest():
    day = Day(slo_ms=50, ms_of_largest=10)
    assert {place for place, _ in day.ask(20, 10)} == {3}


def test_under_load_the_largest_that_keeps_up_answers():
    day = Day(slo_ms=50, ms_of_largest=10)
    answers = day.ask(130, 30)[130 * 10 :]  # 1.3 times what the largest can do
    assert {place for place, _ in answers} <= {1, 2}
    late = [ms for _, ms in answers if ms > 50]
    assert len(late) / len(answers) < 0.05


def test_when_the_load_is_gone_the_largest_is_back():
    day = Day(slo_ms=50, ms_of_largest=10)
    day.ask(130, 10)
    assert day.pace.place < 3
    assert day.ask(10, 12)[-1][0] == 3


def test_it_does_not_swing_at_a_load_between_two_sizes():
    day = Day(slo_ms=50, ms_of_largest=10)
    places = [place for place, _ in day.ask(90, 60)]
    changes = sum(one != other for one, other in pairwise(places))
    assert changes <= 2


def test_more_than_the_smallest_can_do_gets_the_smallest():
    day = Day(slo_ms=50, ms_of_largest=10)
    assert day.ask(400, 5)[-1][0] == 0


@pytest.mark.parametrize(
    ("macs", "slo", "message"),
    [
        ((), 10, "expected the compute of sizes, ascending"),
        ((2, 1), 10, "expected the compute of sizes, ascending"),
        ((1, 2), 0, "slo_ms must be above 0, got 0"),
    ],
)
def test_what_cannot_be_followed_is_refused(macs, slo, message):
    with pytest.raises(ValueError, match=message):
        Pace(macs, slo)
