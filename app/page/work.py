"""Long work for one visitor: it goes on whatever they click on meanwhile, and they can stop it."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """The visitor has stopped the work."""


class Work(Generic[T]):
    """Something at work in a thread of its own.

    Args:
        work: Does it; it is given what to call with how far it is, again and again.

    Attributes:
        told: How far it is.
        found: What came of it, once it has.
        error: Why nothing did; `StoppedError` if it was stopped.
    """

    def __init__(self, work: Callable[[Callable[[float], None]], T]) -> None:
        self.told = 0.0
        self.found: T | None = None
        self.error: Exception | None = None
        self._work, self._stopped = work, False
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, in one way or the other."""
        return not self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether it is to stop."""
        return self._stopped

    def wait(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def stop(self) -> None:
        """End it when it next tells how far it is."""
        self._stopped = True

    def _run(self) -> None:
        try:
            self.found = self._work(self._tell)
        except Exception as error:  # noqa: BLE001 - whatever it is, its visitor has to be told
            self.error = error

    def _tell(self, told: float) -> None:
        if self._stopped:
            raise StoppedError
        self.told = told
