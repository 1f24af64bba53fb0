"""How the command speaks: data on stdout, everything else on stderr, one line per error."""

from __future__ import annotations

import json
import sys
from typing import Any

DONE, FAILED, BAD_USAGE, DONE_WITH_FAILURES, INTERRUPTED = 0, 1, 2, 3, 130


def say(message: str) -> None:
    """Tell the person something that is not data."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201


def show(text: str) -> None:
    """Print data."""
    print(text, flush=True)  # noqa: T201


def show_json(value: Any) -> None:  # noqa: ANN401
    """Print one JSON value on one line."""
    show(json.dumps(value, ensure_ascii=False, allow_nan=False))


def one_line(error: BaseException) -> str:
    """Squeeze an error into one line that says something."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    return text or type(error).__name__


def show_progress() -> bool:
    """Whether anybody is there to watch a progress bar."""
    return sys.stderr.isatty()
