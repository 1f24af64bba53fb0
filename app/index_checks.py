"""What the `matvit index` commands check before they start, and say when they stop."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from app.console import INTERRUPTED, say
from app.options import bad_usage


def check_request(kind: str, factory: str | None, max_memory: str | None) -> None:
    """Refuse what cannot be meant before an encoder is loaded for it."""
    from indexing import AUTO, KINDS, KindRequest, parse_bytes

    try:
        most = None if max_memory is None else parse_bytes(max_memory)
        KindRequest(kind=kind, factory=factory, max_memory_bytes=most)
        if kind not in (AUTO, *KINDS):
            raise ValueError(f"unknown kind {kind!r}; known: {AUTO}, {', '.join(KINDS)}")
    except ValueError as error:
        bad_usage(error)


def say_kind(index: Path) -> None:
    """Say how well an approximate kind searches, and why it is another one than was asked for."""
    from indexing import read_manifest

    record = read_manifest(index).index
    if record is not None and record.calibration is not None:
        say(f"{record.kind} ({record.factory}): {record.calibration.describe()}")
    if record is not None and record.note is not None:
        say(record.note)


def check_workers(workers: int | None, *, processes: bool) -> None:
    """Refuse processes that are none."""
    if workers == 0 and processes:
        bad_usage(ValueError("--processes needs at least 1 of --workers"))


@contextmanager
def stoppable(index: Path) -> Iterator[None]:
    """Let Ctrl-C be a clean stop that says what is stored and how to go on."""
    from indexing import MANIFEST, read_manifest

    try:
        yield
    except KeyboardInterrupt:
        stored = 0
        if (index / MANIFEST).exists():
            manifest = read_manifest(index)
            staged = sum(shard.metadata.rows for shard in manifest.staged)
            stored = manifest.counts.images + staged
        again = shlex.join(["matvit", *sys.argv[1:]])
        say(f"Stopped; {stored:,} images are stored. To go on, type again: {again}")
        raise typer.Exit(INTERRUPTED) from None
