"""How far a long step has come: a bar in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tqdm import tqdm

LINE_EVERY_S = 15.0
"""Seconds from one line to the next, and the longest that a step is silent."""

_COUNTED = "{desc}: {n_fmt} of {total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}"
_UNCOUNTED = "{desc}: {n_fmt} {unit}, {elapsed} so far"
_RUNNING = "{desc}, {elapsed} so far"

_under_way: list[tqdm] = []
"""The steps that are being told of, each a part of the one before it."""


@contextmanager
def progress_of(
    doing: str,
    total: int | None = None,
    *,
    unit: str = "",
    done: int = 0,
    shown: bool = True,
    as_lines: bool | None = None,
) -> Iterator[tqdm]:
    """Tell people on stderr how far a step has come.

    Lines tell of the innermost step only.

    Args:
        doing: What the step does, such as `"indexing"`.
        total: How much there is to do; None if nobody knows.
        unit: What is counted; `"B"` for bytes.
        done: How much of it was done before.
        shown: Whether to say anything at all.
        as_lines: Write lines even in a terminal; None writes them where stderr is none.

    Yields:
        What to call `update(count)` of.
    """
    lines = as_lines if as_lines is not None else sys.stderr is None or not sys.stderr.isatty()
    bar = tqdm(
        total=total, desc=doing, unit=unit, initial=done, unit_scale=unit == "B",
        disable=not shown, file=io.StringIO() if lines else None,
    )  # fmt: skip
    if not shown:
        yield bar
        return
    ended = threading.Event()
    telling = threading.Thread(target=_tell, args=(bar, ended, lines), daemon=True)
    _under_way.append(bar)
    telling.start()
    try:
        with bar:
            yield bar
    finally:
        ended.set()
        _under_way.remove(bar)
        telling.join()


def _tell(bar: tqdm, ended: threading.Event, lines: bool) -> None:
    """Say again and again how far it is, even if it gets no further."""
    while not ended.wait(LINE_EVERY_S):
        with suppress(OSError, ValueError):  # nobody listens any more
            if not lines:
                bar.refresh()
            elif _under_way[-1:] == [bar] and sys.stderr is not None:
                sys.stderr.write(f"{_line(bar)}\n")
                sys.stderr.flush()


def _line(bar: tqdm) -> str:
    known = bar.format_dict
    form = _COUNTED if bar.total else _UNCOUNTED if bar.n else _RUNNING
    text: str = tqdm.format_meter(**{**known, "ncols": None, "bar_format": form})
    return text
