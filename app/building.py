"""What the commands that build and update indexes have in common: options, and what they say."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import indexing
from app.options import bad_usage
from app.output import INTERRUPTED, say

BatchOption = Annotated[int, typer.Option(min=1, help="Images per forward pass.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=0, help="Images decoded side by side [default: one per CPU]."),
]
ProcessesOption = Annotated[
    bool,
    typer.Option("--processes", help="Decode in processes: a crash then costs one image."),
]


class Numbers(StrEnum):
    """In which numbers an encoder computes."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


PrecisionOption = Annotated[
    Numbers,
    typer.Option(help="Numbers to compute in: auto is bfloat16 where it is faster, off by 0.001."),
]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Take only what it names, as '*.jpg'; may be repeated."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Leave out what it names, as 'old/**'; may be repeated."),
]


def check_request(
    kind: str,
    factory: str | None,
    max_memory: str | None,
    include: list[str] | None,
    exclude: list[str] | None,
) -> None:
    """Refuse what cannot be meant before an encoder is loaded for it."""
    try:
        most = None if max_memory is None else indexing.parse_bytes(max_memory)
        indexing.KindRequest(kind=kind, factory=factory, max_memory_bytes=most)
        if kind not in (indexing.AUTO, *indexing.KINDS):
            raise ValueError(
                f"unknown kind {kind!r}; known: {indexing.AUTO}, {', '.join(indexing.KINDS)}"
            )
        indexing.Selection.of(include, exclude, labels=True)
    except ValueError as error:
        bad_usage(error)


def say_kind(index: Path) -> None:
    """Say how well an approximate kind searches, and why it is another one than was asked for."""
    record = indexing.read_manifest(index).index
    if record is not None and record.effort is not None:
        say(f"{record.kind} ({record.factory}): {record.effort.describe()}")
    if record is not None and record.note is not None:
        say(record.note)


def say_left_out(corpus: indexing.Corpus | indexing.CorpusRecord) -> None:
    """Say what else there is where the images are."""
    for sentence in corpus.left_out.in_words():
        say(sentence)


def decoders_of(batch_size: int, workers: int | None, *, processes: bool) -> indexing.Decoders:
    """Say who decodes, and refuse processes that are none."""
    if workers == 0 and processes:
        bad_usage(ValueError("--processes needs at least 1 of --workers"))
    return indexing.Decoders(workers=workers, processes=processes, batch_size=batch_size)


@contextmanager
def stoppable(index: Path) -> Iterator[None]:
    """Let Ctrl-C be a clean stop that says what is stored and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        stored = 0
        if (index / indexing.MANIFEST).exists():
            manifest = indexing.read_manifest(index)
            staged = sum(shard.metadata.rows for shard in manifest.staged)
            stored = manifest.counts.images + staged
        again = shlex.join(["matvit", *sys.argv[1:]])
        say(f"Stopped; {stored:,} images are stored. To go on, type again: {again}")
        raise typer.Exit(INTERRUPTED) from None
