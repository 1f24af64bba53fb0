"""The commands that make encoders: `matvit train`, `matvit extract` and `matvit convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from app.console import say, show, show_json, show_progress
from app.options import (
    Device,
    DeviceOption,
    JsonOption,
    bad_usage,
    exit_with_failures,
    load,
    resolve,
)


def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Folder with a folder per class, Parquet or tar files."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the encoder, its log and its state.")],
    recipe: Annotated[str, typer.Option(help="Named recipe.")] = "joint64",
    validation: Annotated[
        str | None, typer.Option(help="Labelled images; 1,000 of them are classified at the end.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: DeviceOption = Device.AUTO,
    init: Annotated[
        str | None, typer.Option(help="Encoder whose weights to start from [default: none].")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder to keep decoded images in, on disk [default: in memory]."),
    ] = None,
    decode_size: Annotated[
        int | None,
        typer.Option(min=8, help="Side in pixels that crops are taken from [default: the input]."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Threads that fetch images ahead of the training.")
    ] = 1,
    evaluate_every: Annotated[
        float | None, typer.Option(min=0, help="Epochs between evaluations on --validation.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last state.")] = False,
) -> None:
    """Train a MatViT on labelled images, from scratch or from the weights of another.

    On several GPUs: torchrun --nproc-per-node 2 --no-python matvit train ...
    """
    from indexing import Corpus
    from matvit.training import LabelledPixels, Processes
    from matvit.training import recipe as find_recipe
    from matvit.training import train as run

    try:
        chosen = find_recipe(recipe)
    except ValueError as error:
        bad_usage(error)
    processes = Processes.launched()
    watched = show_progress() and processes.leads
    spec = chosen.preprocess()
    stored = spec if decode_size is None else replace(spec, img_size=decode_size)
    images = LabelledPixels.load(Corpus.open(data), stored, cache=cache, progress=watched)
    held_out = None
    if validation is not None:
        held_out = LabelledPixels.load(Corpus.open(validation), spec, cache=cache, progress=watched)
    run(
        chosen, images, out, validation=held_out, seed=seed, device=device.value,
        init=load(init, Device.CPU) if init else None, workers=workers,
        evaluate_every=evaluate_every, resume=resume, progress=watched,
    )  # fmt: skip
    if not processes.leads:
        return
    say(f"Trained on {len(images):,} images ({images.skipped:,} skipped); the encoder is in {out}.")
    if processes.count == 1:  # torchrun would take any exit code for a crash
        exit_with_failures(images.skipped)


def extract(
    encoder: Annotated[
        str, typer.Argument(metavar="ENCODER", help="Bundled encoder or checkpoint folder.")
    ],
    submodel: Annotated[str, typer.Option(help="S, M, L, XL, or per block: 4xS,2xXL.")],
    out: Annotated[Path, typer.Option(help="Folder for the small encoder.")],
) -> None:
    """Cut a submodel out of an encoder, as a plain timm ViT that asks the same indexes."""
    from matvit import extract as cut
    from matvit import save_extracted

    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder")
    model = load(encoder, Device.CPU)
    small = cut(model, resolve(model, submodel))
    save_extracted(small, out)
    count = sum(parameter.numel() for parameter in small.parameters())
    say(f"{model.name} {small.widths}: {count:,} parameters in {out}.")


def convert(
    encoder: Annotated[
        str,
        typer.Argument(
            metavar="ENCODER",
            help="Bundled encoder, checkpoint folder, or a timm Vision Transformer by name.",
        ),
    ],
    images: Annotated[str, typer.Option(help="Folder of images, Parquet or tar files; no labels.")],
    out: Annotated[Path, typer.Option(help="Folder for the converted encoder.")],
    no_training: Annotated[
        bool, typer.Option("--no-training", help="Only sort the hidden units by importance.")
    ] = False,
    epochs: Annotated[
        float | None,
        typer.Option(min=0.01, help="Passes over the images [default: 100,000 seen, 30 at most]."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak, above 0.")] = None,
    max_images: Annotated[
        int, typer.Option(min=20, help="Decode at most this many; they are kept in memory.")
    ] = 20_000,
    img_size: Annotated[
        int | None,
        typer.Option("--image-size", min=1, help="Side of the input, for timm names only."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: DeviceOption = Device.AUTO,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make any Vision Transformer elastic, without labels.

    An index made with ENCODER stays valid.
    """
    from app.convert import find_encoder, format_rows, run_conversion
    from indexing import Corpus
    from matvit import resolve_device
    from matvit.conversion import check_target
    from matvit.training import LabelledPixels

    check_target(out, resume=resume)
    where = resolve_device(device.value)
    model = find_encoder(encoder, img_size).to(where)
    data = LabelledPixels.load(
        Corpus.open(images), model.preprocess,
        labels=False, limit=max_images, progress=show_progress(),
    )  # fmt: skip
    rows = run_conversion(
        model, data, out,
        training=not no_training,
        settings={"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate},
        seed=seed, device=device.value, resume=resume, progress=show_progress(),
    )  # fmt: skip
    if as_json:
        for row in rows:
            show_json(row)
    else:
        show(format_rows(rows))
    say(f"{model.name} at full size is unchanged ({model.fingerprint}); the encoder is in {out}.")
    exit_with_failures(data.skipped)
