"""What the command says: data on stdout, talk on stderr, nothing in it that a terminal obeys.

Names of files are chosen by others. A line break in one would begin a line of its own, an escape
sequence would move the cursor, a bidirectional override would turn the rest around. People see
such characters written out; `--json` writes them so that its reader gets the exact name.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO
from unicodedata import category

import typer

import indexing
import retrieval

DONE, FAILED, BAD_USAGE, DONE_WITH_FAILURES, INTERRUPTED = 0, 1, 2, 3, 130

STDOUT = "standard output"
"""What an error calls the file that cannot be written."""

_EXTRAS = {
    "faiss": "cpu",
    **dict.fromkeys(("torch", "torchvision", "timm", "huggingface_hub", "msgpack"), "build"),
    **dict.fromkeys(("fastapi", "uvicorn", "prometheus_client"), "serve"),
    "lancedb": "lance",
    "qdrant_client": "qdrant",
    **dict.fromkeys(("streamlit", "altair", "pandas", "matplotlib", "sklearn"), "page"),
}

_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"
"""Of letters in Persian, of emoji: what they join looks wrong without them."""


def readable(text: str) -> str:
    r"""Write out what is no visible character, on one line: `\n`, `\x1b`, `\u202e`.

    A byte of a name that is no UTF-8 becomes `\xe9`.
    """
    return text if text.isprintable() else "".join(map(_written_out, text))


def say(message: str) -> None:
    """Tell the person something that is not data, on one line; if nobody listens, go on."""
    with suppress(OSError):
        _put(sys.stderr, readable(message) + "\n")


def show(*lines: str) -> None:
    """Print data, each argument on one line.

    Raises:
        OSError: If it cannot be written; `BrokenPipeError` if nobody wants any more.
    """
    _print("".join(f"{readable(line)}\n" for line in lines))


def show_row(cells: Iterable[str]) -> None:
    """Print one row of a table for programs, with a tab between its cells."""
    _print("\t".join(map(readable, cells)) + "\n")


def show_json(value: Any) -> None:  # noqa: ANN401
    """Print one JSON value on one line, its strings exactly as they are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not text.isprintable():
        text = "".join(map(_escaped, text))
    if not _can_show(sys.stdout, text):
        text = json.dumps(value, allow_nan=False)
    _print(text + "\n")


def show_frontier(
    frontier: retrieval.ParetoFrontier, *, as_json: bool, recommended: str | None = None
) -> None:
    """Print every submodel that was measured: a JSON object each, or a table."""
    if as_json:
        for point in frontier:
            show_json(point.to_dict())
    else:
        show(*retrieval.format_table(frontier, recommended=recommended).split("\n"))
    warn_of_disorder(frontier)


def warn_of_disorder(frontier: retrieval.ParetoFrontier) -> None:
    """Say where milliseconds contradict the order of compute."""
    if found := retrieval.disorder(frontier):
        say(f"warning: {found}; measure again when it is idle")


def hold_closed_streams() -> None:
    """Keep the numbers of closed streams taken: libraries write to 1 and 2 whatever is there."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)


def drop_unwritten() -> None:
    """Give up what stdout does not take, or it would be tried once more when the program ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def missing(module: str | None) -> str | None:
    """Say in one line what is missing and what installs it; None if it is no part of an extra."""
    if (extra := _EXTRAS.get(module or "")) is None:
        return None
    also = "; on Linux with an NVIDIA GPU [gpu] instead of [cpu]" if extra == "cpu" else ""
    return f"{module} is missing; run: pip install 'matvit-retrieval[{extra}]'{also}"


def one_line(error: BaseException | str) -> str:
    """Squeeze an error into one line that says something."""
    text = " ".join(filter(None, map(str.strip, str(error).splitlines())))
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        name = error.filename
        text = f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {error.strerror}"
    return readable(text) or type(error).__name__


def report_failures(failures: Sequence[indexing.Failure], shown: int = 5) -> None:
    """Name the first images that could not be read, and count them by reason."""
    for failure in failures[:shown]:
        say(f"skipped {failure.path}: {failure.message}")
    if len(failures) > shown:
        more = len(failures) - shown
        say(f"... and {more:,} more; see them with `matvit index info INDEX --failures`")
        counts = Counter(failure.error for failure in failures).most_common()
        say("By error: " + ", ".join(f"{count:,} {error}" for error, count in counts))


def exit_with_failures(count: int) -> None:
    """End with the exit code that says whether everything could be used."""
    if count:
        say(f"Done, but {count:,} images could not be used.")
        raise typer.Exit(DONE_WITH_FAILURES)


def _written_out(character: str) -> str:
    if category(character) not in _OBEYED or character in _JOINERS:
        return character
    if "\udc80" <= character <= "\udcff":  # how Python carries a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _escaped(character: str) -> str:
    """Write a character of JSON text that a terminal would obey as JSON can also write it."""
    if category(character) not in _OBEYED or character in _JOINERS:
        return character
    return json.dumps(character)[1:-1]


def _can_show(stream: TextIO | None, text: str) -> bool:
    try:
        text.encode(_encoding(stream))
    except UnicodeEncodeError:
        return False
    return True


def _encoding(stream: TextIO | None) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _print(text: str) -> None:
    try:
        _put(sys.stdout, text)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, STDOUT) from error


def _put(stream: TextIO | None, text: str) -> None:
    """Write text as far as a stream has the characters for it, the others written out."""
    if stream is None:
        raise OSError(9, os.strerror(9))
    encoding = _encoding(stream)
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
