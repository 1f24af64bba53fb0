"""The `matvit index` commands: build, add, remove, relocate, compact, verify, info."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import indexing
import matvit
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
    say_kind,
    say_left_out,
    stoppable,
)
from app.commands import group
from app.options import (
    Device,
    DeviceOption,
    EncoderOption,
    IndexArgument,
    JsonOption,
    bad_usage,
    load_to_build,
    load_whole_for,
)
from app.output import (
    FAILED,
    exit_with_failures,
    report_failures,
    say,
    show,
    show_json,
    show_row,
)
from app.shard_cli import check_source, join_shards

index_cli = group(
    {
        "build": "app.index_cli:index_build",
        "add": "app.index_cli:index_add",
        "remove": "app.index_cli:index_remove",
        "relocate": "app.index_cli:index_relocate",
        "compact": "app.index_cli:index_compact",
        "verify": "app.index_cli:index_verify",
        "info": "app.index_cli:index_info",
        "adopt": "app.adopt_cli:index_adopt",
        "export": "app.export_cli:index_export",
        "duplicates": "app.duplicates_cli:index_duplicates",
        "shard": "app.shard_cli:index_shard",
    },
    about="Build, update and check image indexes.",
)


def index_build(
    out: Annotated[Path, typer.Option(help="Folder of the new index.")],
    images: Annotated[
        str | None,
        typer.Argument(metavar="[IMAGES]", help="Folder of images, Parquet files or tar archives."),
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option(help="Instead of images: folder of what `matvit index shard` made of them."),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="Go on as if nobody had sorted the images.")
    ] = False,
    encoder: Annotated[str, typer.Option(help="Bundled encoder or checkpoint folder.")] = "",
    kind: Annotated[
        str,
        typer.Option(
            help="Search structure: auto, Flat, Flat16, HNSW, IVFFlat, IVFSQ8, IVFPQ or IVFRaBitQ."
        ),
    ] = "auto",
    factory: Annotated[
        str | None, typer.Option(help="FAISS factory string instead of a kind.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="What the search structure may take, such as 4GB.")
    ] = None,
    search_device: Annotated[
        Device, typer.Option(help="Where it will be searched: auto chooses what is fast there.")
    ] = Device.AUTO,
    batch_size: BatchOption = 256,
    workers: WorkersOption = None,
    processes: ProcessesOption = False,
    precision: PrecisionOption = Numbers.AUTO,
    device: DeviceOption = Device.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Embed all images once, at full size, into a new index; or finish one that was stopped."""
    check_request(kind, factory, max_memory, include, exclude)
    decoders = decoders_of(batch_size, workers, processes=processes)
    check_source(images, shards, chosen=bool(include or exclude or no_labels or encoder))
    if shards is not None:
        index = join_shards(
            shards, out, kind, factory, max_memory, matvit.resolve_device(search_device.value)
        )
    else:
        assert images is not None
        model = load_to_build(encoder, device)
        corpus = indexing.Corpus.open(
            images, include=include, exclude=exclude, labels=False if no_labels else None
        )
        with stoppable(out):
            index = indexing.ImageIndex.build(
                model,
                corpus,
                out,
                kind=kind,
                factory=factory,
                max_memory=max_memory,
                search_device=search_device.value,
                decoders=decoders,
                precision=precision.value,
                progress=True,
            )
    report_failures(index.failures)
    say_left_out(index.described.corpus)
    say_kind(out)
    if as_json:
        show_json(index.info())
    else:
        name = index.described.encoder.name
        show(f"{len(index):,} images in {out}, embedded by {name} at full size.")
    exit_with_failures(len(index.failures))


def index_add(
    index: IndexArgument,
    images: Annotated[
        str | None,
        typer.Argument(metavar="[IMAGES]", help="The images [default: where they were]."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Read again what could not be read before.")
    ] = False,
    remove_missing: Annotated[
        bool, typer.Option("--remove-missing", help="Remove images whose file is gone.")
    ] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read every file: size and time may be as before.")
    ] = False,
    encoder: EncoderOption = None,
    batch_size: BatchOption = 256,
    workers: WorkersOption = None,
    processes: ProcessesOption = False,
    precision: PrecisionOption = Numbers.AUTO,
    device: DeviceOption = Device.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Embed what is new or changed since the index was built; the rest is not read again."""
    decoders = decoders_of(batch_size, workers, processes=processes)
    before = indexing.read_finished(index)
    model = load_whole_for(index, before, encoder, device)
    try:
        corpus = indexing.reopen_corpus(before.corpus, images)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; if the images have moved: matvit index relocate INDEX PLACE"
        ) from error
    with stoppable(index):
        # Without opening the index: its vectors would lie in memory twice.
        report = indexing.add_images(
            model,
            corpus,
            index,
            retry_failed=retry_failed,
            remove_missing=remove_missing,
            rehash=rehash,
            decoders=decoders,
            precision=precision.value,
            progress=True,
        )
    if report.failed:
        failures = indexing.read_failures(index, indexing.read_finished(index).failure_files)
        report_failures(failures[-report.failed :])
    say_left_out(corpus)
    say_kind(index)
    if as_json:
        show_json({"path": str(index), **asdict(report)})
    else:
        show(
            f"{report.images:,} images in {index}: {report.added:,} added, {report.changed:,} "
            f"changed, {report.renamed:,} renamed, {report.removed:,} removed, "
            f"{report.unchanged:,} as before."
        )
    exit_with_failures(report.failed)


def index_remove(
    index: IndexArgument,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Images, as `matvit search` names them."),
    ] = None,
    ids: Annotated[
        list[int] | None,
        typer.Option("--id", min=0, max=2**63 - 1, help="Id of an image; may be repeated."),
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Leave them out whenever `add` finds them again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find some images no more; `compact` gives back their space."""
    if not names and not ids:
        bad_usage(ValueError("name the images to remove, or give their ids with --id"))
    try:
        # As an index has them: what is no UTF-8 in a name is replaced.
        texts = [os.fsencode(name).decode(errors="replace") for name in names or ()]
        report = indexing.remove_images(index, ids or (), texts, forget=forget)
    except KeyError as error:
        raise ValueError(f"{error.args[0]}; nothing was removed") from error
    if as_json:
        show_json({"path": str(index), **asdict(report)})
    else:
        show(f"{report.images:,} images in {index}: {report.removed:,} removed.")
        if report.still_there:
            say(
                f"{report.still_there:,} of them are still where they were: `matvit index add` "
                "brings them back; `remove --forget` keeps them out."
            )
    if report.forgotten:
        say(f"{report.forgotten:,} images that could not be read are no longer listed.")


def index_relocate(
    index: IndexArgument,
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="Where the images of the index are now.")
    ],
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Compare all images rather than a thousand.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say where the images are now, after they were moved; nothing is embedded again."""
    report = indexing.relocate_index(index, place, rehash=rehash, progress=True)
    if as_json:
        show_json({"path": str(index), **asdict(report)})
    else:
        show(
            f"The {report.images:,} images of {index} are now in {report.root}: all names are "
            f"there, {report.compared:,} were read and are the same."
        )


def index_compact(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Give back the space of what was removed or left behind."""
    report = indexing.compact_index(index, progress=True)
    say_kind(index)
    if as_json:
        show_json({"path": str(index), **asdict(report)})
    else:
        show(
            f"{report.images:,} images in {index}: {report.rows:,} dead rows gone, "
            f"{report.bytes:,} bytes freed."
        )


def index_verify(
    index: IndexArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make a damaged search file anew.")
    ] = False,
    originals: Annotated[
        bool, typer.Option("--originals", help="Also read the images, and compare them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read everything an index consists of, and name what is damaged."""
    report = indexing.verify_index(index, repair=repair, originals=originals, progress=True)
    if report.repaired:
        say_kind(index)
    if as_json:
        show_json({"path": str(index), "ok": report.ok, **asdict(report)})
    else:
        _show_verified(index, report)
    if originals and not as_json:
        show(f"{report.compared:,} images read, {len(report.changed):,} not as indexed.")
    if report.orphans and not as_json:
        say("Nothing needs the unused files: `matvit index compact INDEX` removes them.")
    if report.changed and not as_json:
        say("`matvit index add --rehash` takes what changed, `index relocate` what moved.")
    if report.damaged and all(damage.file.startswith("index/") for damage in report.damaged):
        say("The embeddings are whole: `matvit index verify INDEX --repair` mends this.")
    if not report.ok or report.changed:
        raise typer.Exit(FAILED)


def _show_verified(index: Path, report: indexing.VerifyReport) -> None:
    """Print a line about the whole index, and one for each thing that is wrong with it."""
    state = "whole" if report.ok else "damaged" if report.damaged else "not to be read"
    show(
        f"{index} is {state}: {report.images:,} images, {report.files:,} files, "
        f"{report.bytes:,} bytes read in {report.seconds:.1f} s."
    )
    for word, found in (("damaged", report.damaged), ("unread", report.unreadable)):
        for damage in found:
            show(f"{word:<8} {damage.file}: {damage.problem}")
    for name in report.repaired:
        show(f"repaired {name}")
    for name in report.orphans:
        show(f"unused   {name}")
    for damage in report.changed:
        show(f"changed  {damage.file}: {damage.problem}")


def index_info(
    index: IndexArgument,
    failures: Annotated[
        bool, typer.Option("--failures", help="List the images that could not be read.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what an index holds, and which encoder may ask it."""
    manifest = indexing.read_finished(index)
    listed = indexing.read_failures(index, manifest.failure_files)
    info = indexing.describe_index(index, manifest, listed)
    if failures:
        for failure in listed:
            row = {"path": failure.path, "error": failure.error, "message": failure.message}
            if as_json:
                show_json(row)
            else:
                show_row(row.values())
        return
    if as_json:
        show_json(info)
        return
    encoder, preprocess = info["encoder"], info["preprocess"]
    show(f"{info['images']:,} images, {info['failures']:,} failed, {info['bytes']:,} bytes")
    if info["removed"]:
        show(f"removed     {info['removed']:,} rows, until `matvit index compact`")
    if info["staged"]:
        show(f"unfinished  {info['staged']:,} images added, until `matvit index add` is repeated")
    kind, factory = info["kind"], info["factory"]
    named = kind if kind == factory else f"{kind} ({factory})"
    show(f"kind        {named}, generation {info['generation']}")
    if manifest.index is not None and manifest.index.effort is not None:
        show(f"search      {manifest.index.effort.describe()}")
    if info["note"]:
        show(f"note        {info['note']}")
    show(f"encoder     {encoder['name']} ({encoder['fingerprint']}), {encoder['dim']} dimensions")
    show(f"preprocess  {preprocess['fingerprint']}")
    show(f"corpus      {info['corpus']['root']}")
    for remark in info["remarks"]:
        show(f"note        {remark}")
