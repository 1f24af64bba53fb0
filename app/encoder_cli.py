"""The commands that make encoders: `matvit train` and `matvit extract`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import replace

import indexing
import matvit
from app.options import Device, DeviceOption, SeedOption, bad_usage, refuse_full
from app.output import exit_with_failures, say
from matvit import training


class Form(StrEnum):
    """What an extracted submodel is written as."""

    TIMM = "timm"
    ONNX = "onnx"


RECIPES = (
    "joint64", "plain32", "joint-after-plain", "align", "align-merging", "apart-s", "plain-gpu",
    "align-gpu", "distill64", "distill-gpu",
)  # fmt: skip
"""Named again for `--help`, which does not wait for torch."""


def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Folder with a folder per class, Parquet or tar files."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the encoder, its log and its state.")],
    recipe: Annotated[str, typer.Option(help=f"One of {', '.join(RECIPES)}.")] = "joint64",
    epochs: Annotated[
        float | None,
        typer.Option(min=0.001, help="Passes over the images [default: the recipe's]."),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Most steps; phases are shortened alike.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Labelled images; 1,000 of them are classified at the end.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.AUTO,
    init: Annotated[
        str | None, typer.Option(help="Encoder whose weights to start from [default: none].")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Network to learn from: timm model, encoder, or ONNX file [default: none].",
        ),
    ] = None,
    teacher_weights: Annotated[
        Path | None, typer.Option(help="File with the weights of that timm model.")
    ] = None,
    teacher_size: Annotated[
        int | None, typer.Option(min=1, metavar="PX", help="Side of the input of the teacher.")
    ] = None,
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="Learn from the teacher alone.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep decoded images in, on disk, and what a teacher says of them "
            "[default: in memory, and in the folder of the encoder]."
        ),
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
    """Train a MatViT on labels, a teacher or both, from scratch or the weights of another.

    On several GPUs: torchrun --nproc-per-node 2 --no-python matvit train ...
    """
    try:
        chosen = training.recipe(recipe)
    except ValueError as error:
        bad_usage(error)
    if chosen.needs_init and init is None:
        raise ValueError(f"recipe {recipe} goes on from an encoder; name it with init")
    options = teacher_weights is not None or teacher_size is not None or no_labels
    _check_teacher(chosen, teacher, with_options=options)
    processes = training.Processes.launched()
    if processes.leads:
        training.check_run_folder(out, resume=resume)
    spec = chosen.preprocess()
    stored = spec if decode_size is None else replace(spec, img_size=decode_size)
    taught_by = None
    if teacher is not None:
        where = matvit.resolve_device(device.value)
        taught_by = training.open_teacher(
            teacher, weights=teacher_weights, img_size=teacher_size, device=where
        )
    corpus = indexing.Corpus.open(data)
    # A set without labels is fine where there is a teacher.
    labels = not no_labels and (taught_by is None or corpus.labels is not None)
    if validation is not None and not labels:
        raise ValueError(
            "--validation counts right classes, and no class is learned here; leave it out, or "
            f"give {data} labels and leave --no-labels out"
        )
    images = training.LabelledPixels.load(
        corpus, stored, labels=labels, cache=cache, progress=processes.leads
    )
    chosen = training.of_length(chosen, len(images), epochs=epochs, max_steps=max_steps)
    held_out = None
    if validation is not None:
        held_out = _decoded(validation, spec, cache=cache, progress=processes.leads)
    training.train(
        chosen, images, out, validation=held_out, seed=seed, device=device.value,
        init=matvit.MatViT.load(init) if init else None, teacher=taught_by, cache=cache,
        workers=workers, evaluate_every=evaluate_every, resume=resume, progress=processes.leads,
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
    submodel: Annotated[
        str, typer.Option(help="S, M, L, XL, per block: 4xS,2xXL; with onnx also S~.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the small encoder.")],
    form: Annotated[Form, typer.Option("--format", help="A plain timm ViT, or ONNX.")] = Form.TIMM,
    int8: Annotated[bool, typer.Option("--int8", help="With onnx: in 8 bits too.")] = False,
    opset: Annotated[
        int | None, typer.Option(min=17, help="With onnx: version of the operators [default: 17].")
    ] = None,
) -> None:
    """Cut a submodel out of an encoder, to ask the same indexes elsewhere."""
    refuse_full(out)
    if form is Form.ONNX:
        _export(encoder, submodel, out, int8=int8, opset=opset)
        return
    if int8 or opset is not None:
        bad_usage(ValueError("--int8 and --opset are for --format onnx"))
    model = matvit.MatViT.load(encoder)
    try:
        small = matvit.extract(model, submodel)
    except ValueError as error:
        bad_usage(error)
    matvit.save_encoder(small, out)
    count = sum(parameter.numel() for parameter in small.parameters())
    say(f"{model.name} {small.submodel()}: {count:,} parameters in {out}.")


def _export(encoder: str, submodel: str, out: Path, *, int8: bool, opset: int | None) -> None:
    model = matvit.load_encoder(encoder, runtime="onnx")
    assert isinstance(model, matvit.OnnxEncoder)
    try:
        chosen = model.submodel(submodel)
        if chosen.int8:
            raise ValueError("name the size alone; --int8 writes it in 8 bits too")
    except ValueError as error:
        bad_usage(error)
    made = matvit.export_onnx(model, chosen, out, int8=int8, **({"opset": opset} if opset else {}))
    say(f"{model.name} {chosen}: {', '.join(made.files)} in {out}.")
    say(f"To check them on another machine: matvit doctor --encoder {out}")


def _decoded(
    images: str,
    preprocess: matvit.Preprocess,
    **how: Any,  # noqa: ANN401
) -> training.LabelledPixels:
    """Decode a folder of images, Parquet or tar files, to be trained on."""
    return training.LabelledPixels.load(indexing.Corpus.open(images), preprocess, **how)


def _check_teacher(recipe: Any, teacher: str | None, *, with_options: bool) -> None:  # noqa: ANN401
    """Refuse a recipe without its teacher, a teacher that nobody asks, and options without one."""
    if recipe.distills and teacher is None:
        bad_usage(ValueError(f"recipe {recipe.name} learns from a teacher; name it with --teacher"))
    if teacher is not None and not recipe.distills:
        bad_usage(
            ValueError(
                f"recipe {recipe.name} learns from no teacher; leave --teacher out, or take a "
                "recipe that distils, such as distill64"
            )
        )
    if teacher is None and with_options:
        bad_usage(
            ValueError("--teacher-weights, --teacher-size and --no-labels go with --teacher NAME")
        )
