"""What the commands have in common: their options, and what they do with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from app.console import DONE_WITH_FAILURES, say

if TYPE_CHECKING:
    from indexing import Failure, Manifest
    from matvit import Encoder, MatViT, Submodel
    from retrieval import Retriever


class Device(StrEnum):
    """Where the encoder and FAISS run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


DeviceOption = Annotated[Device, typer.Option(help="Where the encoder and FAISS run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
EncoderOption = Annotated[
    str | None,
    typer.Option(help="Bundled encoder or checkpoint folder [default: the index's own]."),
]
IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.")]
HitsOption = Annotated[int, typer.Option("-k", min=1, help="Hits per query.")]


def bad_usage(error: ValueError) -> NoReturn:
    """Turn an error about what was typed into one of usage."""
    raise typer.BadParameter(str(error)) from error


def load(encoder: str, device: Device) -> MatViT:
    """Load a whole encoder by bundled name or folder; an empty name is the default one."""
    from matvit import DEFAULT, MatViT, resolve_device

    return MatViT.load(encoder or DEFAULT, device=resolve_device(device.value))


def open_retriever(path: Path, encoder: str | None, device: Device) -> Retriever:
    """Open an index together with an encoder that may ask it."""
    from app.opening import load_encoder_for
    from indexing import ImageIndex
    from matvit import resolve_device
    from retrieval import Retriever

    # FAISS uses the GPU where it sees one; nobody has to install it for one.
    index = ImageIndex.open(path, device="cpu" if device is Device.CPU else "auto")
    return Retriever(load_encoder_for(index, encoder, resolve_device(device.value)), index)


def resolve(encoder: Encoder, text: str | None) -> Submodel:
    """Read a submodel as typed."""
    try:
        return encoder.submodel(text)
    except ValueError as error:
        bad_usage(error)


def choose(
    retriever: Retriever,
    submodel: str | None,
    max_gmacs: float | None = None,
    max_ms: float | None = None,
    min_recall: float | None = None,
) -> Submodel | str:
    """Read a submodel as typed, or pick one for a budget; `auto` stays what it is."""
    from retrieval import AUTO, Budget

    budget = {"max_gmacs": max_gmacs, "max_ms": max_ms, "min_recall": min_recall}
    budgeted = any(value is not None for value in budget.values())
    try:
        if budgeted and submodel is not None:
            raise ValueError("give --submodel or a budget (--max-gmacs ...), not both")
        if budgeted:
            Budget(**budget)
        elif submodel != AUTO:
            return retriever.encoder.submodel(submodel)
    except ValueError as error:
        bad_usage(error)
    if note := retriever.tuning_note:
        say(f"note: {note}")
    return retriever.choose(**budget) if budgeted else AUTO


def load_whole_for(index: Path, manifest: Manifest, encoder: str | None, device: Device) -> MatViT:
    """Load the whole encoder that built an index, to add to it."""
    from app.opening import encoder_name

    return load(encoder_name(index, manifest.encoder.name, encoder), device)


def report_failures(failures: Sequence[Failure], shown: int = 5) -> None:
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
