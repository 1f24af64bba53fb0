"""What the commands have in common: what people type, and what they open."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

import indexing
import matvit
import retrieval
from app.output import say, warn_of_disorder

DEMO = Path("matvit-demo")
"""Folder of the demo, unless another one is named."""

AUTO = "auto"
"""What to type instead of a submodel, to let each query choose."""

MIXES = 12
"""How many Mix'n'Match submodels the word `mix` stands for."""


_WIDTHS = re.compile(r"([0-9]{1,4})\s*[x*]")
_COUNTS = re.compile(r"(?:([0-9]{1,4})\s*[x*])?\s*[0-9]+\s*(:.*)?$")


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
AskedArgument = Annotated[
    str,
    typer.Argument(
        metavar="INDEX",
        help="Folder of the index, or where it was exported to: NAME.lance, NAME.qdrant, or a "
        "Qdrant server's http://HOST:6333/NAME.",
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of whatever is drawn.")]
HitsOption = Annotated[int, typer.Option("-k", min=1, help="Hits per query.")]


def bad_usage(error: ValueError) -> NoReturn:
    """Turn an error about what was typed into one of usage."""
    raise typer.BadParameter(str(error)) from error


def refuse_full(out: Path) -> None:
    """Refuse a folder for something new that is there and is not empty.

    Raises:
        FileExistsError: If it is, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; choose another folder")


def load_to_build(encoder: str, device: Device) -> matvit.Encoder:
    """Load an encoder by bundled name or folder, to embed many images; "" is the default one.

    Torch does that where it is installed: it computes in bfloat16 where that is faster.
    """
    where = matvit.resolve_device(device.value)
    runtime: Literal["torch", "onnx"] = "torch" if matvit.has_torch() else "onnx"
    return matvit.load_encoder(encoder or matvit.DEFAULT_ENCODER, device=where, runtime=runtime)


def encoder_name(path: Path, built_by: str, encoder: str | None) -> str:
    """Return the encoder that was named, or the one that built the index at a path, if bundled.

    Raises:
        ValueError: If none was named and the index was built by one that is not bundled.
    """
    if encoder is None and built_by not in matvit.bundled_encoders():
        raise ValueError(
            f"{path} was built by encoder {built_by!r}, which is not bundled; "
            "name its folder with --encoder"
        )
    return encoder or built_by


def load_encoder_for(
    index: indexing.IndexedImages, encoder: str | None = None, device: str = "cpu"
) -> matvit.Encoder:
    """Load the encoder that was named, or the bundled one that built the index.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If none was named and the index was built by one that is not bundled.
    """
    where = matvit.resolve_device(device)
    name = encoder_name(index.path, index.described.encoder.name, encoder)
    return matvit.load_encoder(name, device=where)


def load_whole_for(
    index: Path, manifest: indexing.Manifest, encoder: str | None, device: Device
) -> matvit.Encoder:
    """Load the whole encoder that built an index, to add to it."""
    return load_to_build(encoder_name(index, manifest.encoder.name, encoder), device)


def open_retriever(where: str | Path, encoder: str | None, device: Device) -> retrieval.Retriever:
    """Open an index, or what it was exported to, together with an encoder that may ask it."""
    index: indexing.IndexedImages
    if isinstance(where, str) and indexing.is_store(where):
        index = indexing.open_store(where)
    else:
        # FAISS uses the GPU where it sees one; nobody has to install it for one.
        index = indexing.ImageIndex.open(where, device="cpu" if device is Device.CPU else "auto")
    return retrieval.Retriever(load_encoder_for(index, encoder, device.value), index)


def way_to_ask(
    retriever: retrieval.Retriever,
    submodel: str | None,
    budget: Mapping[str, float | None],
    *,
    calibrated: bool,
) -> Callable[..., retrieval.Hits]:
    """Return what finds the `k` images most similar to an `image` by a `wish`, as was typed.

    Args:
        retriever: Who is asked.
        submodel: As typed; `auto` lets each query choose.
        budget: Instead of a submodel; see `retrieval.Budget`.
        calibrated: Whether scores are to be on the full encoder's scale.
    """
    limits = {name: limit for name, limit in budget.items() if limit is not None}
    try:
        if limits and submodel is not None:
            raise ValueError("give --submodel or a budget (--max-gmacs ...), not both")
        if limits:
            retrieval.Budget(**limits)
        chosen = None if limits or submodel == AUTO else retriever.encoder.submodel(submodel)
    except ValueError as error:
        bad_usage(error)
    if chosen is None or calibrated:
        _check_tunable(retriever.index)
    ask: Callable[..., retrieval.Hits] = partial(retriever.search, submodel=chosen)
    if chosen is None:
        tuning = retrieval.Tuning.of(retriever.index, retriever.encoder)
        if note := tuning.note(retriever.index):
            say(f"note: {note}")
        if "max_ms" in limits:
            warn_of_disorder(tuning.by_ms())
        if limits:
            ask = partial(retriever.search, submodel=tuning.choose(**limits))
        else:
            ask = retrieval.AutoRetriever(retriever, tuning).search
    if not calibrated or (chosen is not None and chosen.is_full):
        return ask
    on_full_scale = retrieval.Tuning.of(retriever.index, retriever.encoder).on_full_scale
    return lambda image, **wanted: on_full_scale(ask(image, **wanted))


def _check_tunable(index: indexing.IndexedImages) -> None:
    """Refuse what an index was exported to: what tuning found is in the index.

    Raises:
        ValueError: If it is no index.
    """
    if indexing.is_store(index.path):
        raise ValueError(
            f"{index.path} holds nothing that `matvit tune` found, which budgets, auto and "
            "calibrated scores go by; ask the index, or name a submodel"
        )


def parse_sizes(text: str, config: matvit.MatViTConfig) -> list[matvit.Submodel]:
    """Read a list of submodels, separated by commas.

    A run such as `4xS` begins a submodel that goes on until all blocks have a width, so
    `S,2xM,4xXL,mix` is S, one mixed submodel of six blocks, and a spread of Mix'n'Match ones. So do
    the tokens merged per block, in `S~0,0,16,16,8,0,M`.

    Raises:
        ValueError: If a part cannot be read, or runs do not add up to the number of blocks.
    """
    chosen: list[matvit.Submodel] = []
    for words in _group([word.strip() for word in text.split(",")], config.depth):
        if words == "mix":
            chosen += matvit.mix_n_match(config, MIXES)
        else:
            chosen.append(matvit.parse_submodel(config, words))
    return list(dict.fromkeys(chosen))


def _group(words: list[str], depth: int) -> list[str]:
    """Join the runs that make up one submodel: of widths, and after `~` of merged tokens."""
    groups: list[str] = []
    left = list(reversed(words))
    while left:
        runs = [left.pop()]
        _go_on(runs, runs[0], left, _WIDTHS, depth)
        merged = runs[-1].partition("~")[2]
        is_alone = not re.search("[x*]", merged) and (not left or not _COUNTS.fullmatch(left[-1]))
        if merged and not is_alone:
            _go_on(runs, merged, left, _COUNTS, depth)
        groups.append(",".join(runs))
    return groups


def _go_on(
    runs: list[str], run: str, left: list[str], pattern: re.Pattern[str], depth: int
) -> None:
    """Append the words that go on from a run, until all blocks are described."""
    blocks, words = 0, []
    while (match := pattern.match(run)) is not None:
        words.append(run)
        blocks += int(match[1] or 1)
        if blocks >= depth:
            break
        run = left.pop() if left else ""
        runs.append(run)
    if 0 < blocks < depth:
        raise ValueError(f"{','.join(words)} describes {blocks} blocks, not {depth}")
