"""Killing a child process at a chosen step of what it does to the disk."""

from __future__ import annotations

import builtins
import io
import os
import shutil
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_KILLED, _BROKEN = 77, 78
_STEPS = ("replace", "fsync", "unlink", "remove", "rmdir", "mkdir", "truncate")


def every_crash(
    base: Path, work: Path, action: Callable[[Path], object]
) -> Iterator[tuple[int, Path]]:
    """Kill an action before each of its steps in turn, each time on a fresh copy of a folder.

    A step is a call that changes the disk: a file opened for writing, synced, renamed or removed,
    a folder made or removed. What was not synced is half lost, as in a power cut.

    Args:
        base: The state before; need not exist.
        work: Where copies go.
        action: What to do with a copy.

    Yields:
        The number of the step and the folder that was left, unless the step before left the very
        same files; the last step is the one before the end of the action.
    """
    step, seen = 0, None
    while True:
        folder = work / f"crash-{step:03}"
        if base.exists():
            shutil.copytree(base, folder)
        if not _dies_before(step, lambda folder=folder: action(folder)):
            assert step > 0, "the action never touched the disk"
            return
        left = {path.relative_to(folder): _content(path) for path in folder.rglob("*")}
        if left != seen:
            yield step, folder
        step, seen = step + 1, left


def _content(path: Path) -> bytes | None:
    """Bytes of a file; of a half-written one, which nobody reads, only that it is there."""
    return path.read_bytes() if path.is_file() and path.suffix not in (".tmp", "") else None


def _dies_before(step: int, action: Callable[[], object]) -> bool:
    """Run an action in a child that dies before its step number `step`; False if it ends first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that wait for nothing
        child = os.fork()
    if child == 0:
        code = _BROKEN
        try:
            _count_steps(step)
            action()
            code = 0
        except BaseException:  # noqa: BLE001 -- shown, and told by the exit code
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, _KILLED), f"the action failed at step {step} with exit code {code}"
    return code == _KILLED


def _count_steps(last: int) -> None:
    """Exit before the step with the number `last`."""
    done = 0

    def count(call: Callable[..., Any], *arguments: Any) -> None:
        nonlocal done
        if done == last:
            if call is fsync and stat.S_ISREG((state := os.fstat(arguments[0])).st_mode):
                truncate(arguments[0], state.st_size // 2)
            os._exit(_KILLED)
        done += 1

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            count(call, *arguments)
            return call(*arguments, **named)

        return step

    fsync, truncate, plain_open = os.fsync, os.ftruncate, io.open

    def watched_open(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if set(mode) & set("wax+"):
            count(plain_open)
        return plain_open(file, mode, *arguments, **named)

    for name in _STEPS:
        setattr(os, name, watched(getattr(os, name)))
    io.open = builtins.open = watched_open  # type: ignore[assignment]
