"""Pillow without its warnings: what it says about a damaged file must not decide its fate."""

from __future__ import annotations

import warnings
from threading import Lock
from types import TracebackType


class QuietPillow:
    """Ignores Pillow's warnings while any thread is inside.

    Where warnings are errors a file would otherwise be unreadable that can be read elsewhere. The
    filters belong to all threads, so the first one in changes them and the last one out puts
    them back.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._saved: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._saved is not None:
                self._saved.__exit__(None, None, None)
                self._saved = None
