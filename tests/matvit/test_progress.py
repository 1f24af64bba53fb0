"""Whoever waits is told: a bar in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time

import pytest

from matvit import progress
from matvit.progress import progress_of


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)


def told(capsys, wanted: int = 2) -> list[str]:
    """Wait until so many lines are there."""
    said, deadline = "", time.monotonic() + 20
    while said.count("\n") < wanted and time.monotonic() < deadline:
        time.sleep(0.02)
        said += capsys.readouterr().err
    return said.splitlines()


def test_nothing_is_silent_for_long(capsys):
    with progress_of("indexing", 1000, unit="img", done=100) as bar:
        bar.update(100)
        first, second, *_ = told(capsys)
    assert first.startswith("indexing: 200 of 1000 img, ")
    assert first.endswith(" left")
    assert second.startswith("indexing: 200 of 1000 img, ")
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_what_nobody_counts_is_told_of_too(capsys):
    with progress_of("tuning", unit="submodels") as bar:
        assert told(capsys)[0] == "tuning, 00:00 so far"
        bar.update(3)
        assert "tuning: 3 submodels, " in told(capsys)[-1]


def test_lines_tell_of_the_innermost_step_only(capsys):
    with progress_of("still working", as_lines=True):
        with progress_of("verifying", 10_000_000, unit="B") as bar:
            bar.update(5_000_000)
            lines = told(capsys, 3)
        assert all(line.startswith("verifying: 5.00M of 10.0M B, ") for line in lines)
        assert told(capsys)[-1].startswith("still working, ")


def test_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_of("indexing", 10, unit="img"):
        time.sleep(0.2)
    err = capsys.readouterr().err
    assert "\n" not in err.rstrip("\n")
    assert err.count("indexing:   0%") > 1  # the clock in it goes on


@pytest.mark.parametrize("stream", [None, "closed"])
def test_nobody_to_tell_is_no_error(monkeypatch, tmp_path, stream):
    if stream == "closed":
        with (tmp_path / "err").open("w") as closed:
            stream = closed
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_of("indexing", 10, as_lines=True) as bar:
        time.sleep(0.2)
        bar.update(1)


def test_nothing_is_said_unless_it_is_asked_for(capsys):
    with progress_of("indexing", 10, shown=False) as bar:
        bar.update(3)
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_step_that_fails_is_told_of_no_longer(capsys):
    with pytest.raises(ValueError, match="stop"), progress_of("indexing", 10):
        raise ValueError("stop")
    assert progress._under_way == []
