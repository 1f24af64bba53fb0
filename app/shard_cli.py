"""`matvit index shard`: the share of a build that one of several workers makes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

import indexing
from app.building import (
    BatchOption,
    ExcludeOption,
    IncludeOption,
    Numbers,
    PrecisionOption,
    ProcessesOption,
    WorkersOption,
    check_request,
    decoders_of,
    say_left_out,
    stoppable,
)
from app.options import Device, DeviceOption, bad_usage, load_to_build
from app.output import exit_with_failures, report_failures, say, show

_SHARD = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")


def index_shard(
    images: Annotated[
        str,
        typer.Argument(metavar="IMAGES", help="Folder of images, Parquet files or tar archives."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of all shards.")],
    shard: Annotated[
        str, typer.Option(metavar="K/N", help="Which one of how many: 1/8, 2/8, ... 8/8.")
    ],
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="Go on as if nobody had sorted the images.")
    ] = False,
    encoder: Annotated[str, typer.Option(help="Bundled encoder or checkpoint folder.")] = "",
    batch_size: BatchOption = 256,
    workers: WorkersOption = None,
    processes: ProcessesOption = False,
    precision: PrecisionOption = Numbers.AUTO,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Embed one of N equal shares of the images, as one job of an array; or finish one.

    When all are there: matvit index build --shards DIR --out INDEX.
    """
    check_request(indexing.AUTO, None, None, include, exclude)
    if (asked := _SHARD.fullmatch(shard)) is None or int(asked[1]) > int(asked[2]):
        bad_usage(ValueError(f"--shard is one of 1/N to N/N, such as 2/8; got {shard!r}"))
    decoders = decoders_of(batch_size, workers, processes=processes)
    model = load_to_build(encoder, device)
    corpus = indexing.Corpus.open(
        images, include=include, exclude=exclude, labels=False if no_labels else None
    )
    number, of = int(asked[1]), int(asked[2])
    path = indexing.shard_folder(out, number, of)
    with stoppable(path):
        made = indexing.embed_shard(
            model, corpus, out, number, of,
            decoders=decoders, precision=precision.value, progress=True,
        )  # fmt: skip
    failures = indexing.read_failures(
        path, [each.failures for each in made.staged if each.failures]
    )
    report_failures(failures)
    say_left_out(corpus)
    stored = sum(each.metadata.rows for each in made.staged)
    show(f"{stored:,} of {len(corpus):,} images in {path}, embedded by {model.name} at full size.")
    exit_with_failures(len(failures))


def check_source(images: str | None, shards: Path | None, *, chosen: bool) -> None:
    """Refuse a build of nothing, or of shards and images at once.

    Args:
        images: As typed.
        shards: As typed.
        chosen: Whether something was typed that says which images are embedded, or by what.
    """
    if images is None and shards is None:
        bad_usage(ValueError("name the IMAGES, or what was made of them with --shards"))
    if shards is not None and (images is not None or chosen):
        bad_usage(
            ValueError(
                "--shards says what was embedded: leave out IMAGES, --encoder, --include, "
                "--exclude and --no-labels"
            )
        )


def join_shards(
    shards: Path, out: Path, kind: str, factory: str | None, max_memory: str | None, device: str
) -> indexing.ImageIndex:
    """Make an index of what several workers embedded, and say on what they did."""
    request = indexing.KindRequest.of(kind, factory, max_memory, device)
    with stoppable(out):
        devices = indexing.build_from_shards(shards, out, request=request, progress=True)
    say("Embedded by " + ", ".join(f"{name} ({count})" for name, count in devices.items()) + ".")
    if len(devices) > 1:
        say("note: vectors of other devices or versions may differ in their last bits")
    return indexing.ImageIndex.open(out)
