"""A cache that cannot grow: what was used least recently goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """Keeps what was made, up to a limit; threads may share it.

    Args:
        limit: Most that the sizes of all values may add up to.
        size: Size of a value; by default every value counts as one.
    """

    def __init__(self, limit: int, size: Callable[[V], int] = lambda _: 1) -> None:
        self._limit, self._size = limit, size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._used = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    @property
    def used(self) -> int:
        """What the sizes of all values add up to."""
        return self._used

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return what is kept under `key`, or make it.

        Two threads that miss at once both make it; nobody waits for the other. A value larger
        than the limit is returned and not kept.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._used += self._size(value)
            while self._used > self._limit:
                _, dropped = self._values.popitem(last=False)
                self._used -= self._size(dropped)
        return value
