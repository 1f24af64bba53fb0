"""Sessions in the README and the docs: what is typed there, what it prints, and the same run."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.places import write_places

ROOT = Path(__file__).parent.parent
_NAME = re.compile(r"[a-z]+ \d+/\d\d\.jpg")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def photographs(folder: Path) -> None:
    """Write the files that the sessions speak of: photos/, queries/ and query.jpg."""
    views = write_places(folder / "places", ("astronaut", "cat", "coffee"), views=9)
    for view in sorted(views.rglob("*.jpg")):
        target = folder / ("queries" if view.stem == "08" else "photos") / view.relative_to(views)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(view, target)
    shutil.copy(views / "cat 2" / "08.jpg", folder / "query.jpg")


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of some languages, in order."""
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", text, re.DOTALL)


def python_session(text: str) -> tuple[str, list[str]]:
    """All Python of a page as one program, and the lines that it says are printed."""
    printed = "".join(blocks(text, "text")).splitlines()
    return "\n".join(blocks(text, "python")), printed


def shell_session(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Every `matvit` command of a page that is shown with what it prints: arguments and lines."""
    for entry in "".join(blocks(text, "console")).split("$ matvit ")[1:]:
        command, *lines = entry.splitlines()
        yield shlex.split(command), lines


def assert_alike(printed: list[str], wanted: list[str]) -> None:
    """Compare what was printed with what a page says.

    Other machines are faster or slower, and other processors round differently: scores move a
    little and close neighbours swap. Everything else has to be the same.
    """
    assert len(printed) == len(wanted), (printed, wanted)
    for line, expected in zip(printed, wanted, strict=True):
        assert _shape(line) == _shape(expected)
        for number, other in zip(_numbers(line), _numbers(expected), strict=True):
            _assert_near(number, other)


def _shape(line: str) -> str:
    return _NUMBER.sub("0", _NAME.sub("NAME", line))


def _numbers(line: str) -> list[str]:
    return _NUMBER.findall(_NAME.sub("NAME", line))


def _assert_near(number: str, wanted: str) -> None:
    value, expected = (float(text.replace(",", "")) for text in (number, wanted))
    decimals = len(wanted.partition(".")[2])
    if decimals >= 3:  # a score, or compute
        assert value == pytest.approx(expected, abs=0.01)
    elif decimals == 0:  # thousands are bytes, and each version of Parquet writes a few others
        assert value == pytest.approx(expected, rel=0.2 if "," in wanted else 0)
