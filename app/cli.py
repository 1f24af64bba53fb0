"""The `matvit` command.

torch, timm and FAISS are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from PIL import Image

from app.console import (
    BAD_USAGE,
    FAILED,
    INTERRUPTED,
    one_line,
    say,
    show,
    show_json,
    show_progress,
)
from app.index_cli import index_cli
from app.options import (
    Device,
    DeviceOption,
    EncoderOption,
    HitsOption,
    IndexArgument,
    JsonOption,
    bad_usage,
    exit_with_failures,
    load,
    open_retriever,
    resolve,
)

cli = typer.Typer(
    help="Image search: embed the database once with the full encoder, ask it with smaller ones.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
cli.add_typer(index_cli, name="index")


# Some versions of typer bring a click of their own; this is whichever one it raises.
ClickException: type[typer.BadParameter] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


@cli.command()
def demo(
    images: Annotated[
        Path | None,
        typer.Option(help="Your own photos [default: handwritten digits from scikit-learn]."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for index and report.")] = Path("matvit-demo"),
    encoder: Annotated[str, typer.Option(help="Encoder to use.")] = "",
    device: DeviceOption = Device.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Show the whole story in one go, on your own photos with --images."""
    from app.demo import run_demo
    from retrieval.report import format_table

    made = run_demo(load(encoder, device), out, images, progress=show_progress())
    if as_json:
        for point in made.frontier:
            show_json(point.to_dict())
    else:
        show(format_table(made.frontier))
    say(f"Report: {made.report}/frontier.png, report.csv, report.json")
    say(f"Open the page: {sys.argv[0]} app {made.index} --report {made.report}/report.json")
    exit_with_failures(made.failures)


@cli.command()
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
    from matvit.distributed import Processes
    from matvit.recipes import recipe as find_recipe
    from matvit.train import train as run
    from matvit.training_data import LabelledPixels

    try:
        chosen = find_recipe(recipe)
    except ValueError as error:
        bad_usage(error)
    processes = Processes.launched()
    watched = show_progress() and processes.leads
    spec = chosen.preprocess()
    stored = spec if decode_size is None else replace(spec, image_size=decode_size)
    images = LabelledPixels.load(data, stored, cache=cache, progress=watched)
    held_out = (
        LabelledPixels.load(validation, spec, cache=cache, progress=watched) if validation else None
    )
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


@cli.command()
def extract(
    encoder: Annotated[
        str, typer.Argument(metavar="ENCODER", help="Bundled encoder or checkpoint folder.")
    ],
    submodel: Annotated[str, typer.Option(help="S, M, L, XL, or per block: 4xS,2xXL.")],
    out: Annotated[Path, typer.Option(help="Folder for the small encoder.")],
) -> None:
    """Cut a submodel out of an encoder, as a plain timm ViT that asks the same indexes."""
    from matvit.extract import extract as cut
    from matvit.extract import save_extracted

    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder")
    model = load(encoder, Device.CPU)
    small = cut(model, resolve(model, submodel))
    save_extracted(small, out)
    count = sum(parameter.numel() for parameter in small.parameters())
    say(f"{model.name} {small.widths}: {count:,} parameters in {out}.")


@cli.command()
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
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the input, for timm names only.")
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
    from matvit.convert import check_target
    from matvit.embed import resolve_device
    from matvit.training_data import LabelledPixels

    check_target(out, resume=resume)
    where = resolve_device(device.value)
    model = find_encoder(encoder, image_size).to(where)
    data = LabelledPixels.load(
        images, model.preprocess, labels=False, limit=max_images, progress=show_progress()
    )
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


@cli.command()
def search(
    index: IndexArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images to ask with.")],
    submodel: Annotated[
        str | None, typer.Option(help="S, M, L, XL, or per block: 4xS,2xXL [default: XL].")
    ] = None,
    k: HitsOption = 10,
    encoder: EncoderOption = None,
    device: DeviceOption = Device.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Find the images most similar to each query, encoded by a submodel of your choice."""
    retriever = open_retriever(index, encoder, device)
    chosen = resolve(retriever.encoder, submodel)
    retriever.warm_up(chosen)
    failed = 0
    for image in images:
        try:
            hits = retriever.search(image, chosen, k)
        except (OSError, ValueError) as error:
            if len(images) == 1:
                raise
            say(f"error: {one_line(error)}")
            failed += 1
            continue
        if as_json:
            show_json(hits.to_dict())
            continue
        show(
            f"{image}  [{hits.submodel}: {hits.macs / 1e9:.3f} GMACs, "
            f"{hits.encode_ms:.1f} ms + {hits.search_ms:.1f} ms]"
        )
        for hit in hits:
            show(f"{hit.rank:>4}  {hit.score:.4f}  {hit.path}")
    if failed == len(images):
        raise ValueError("none of the queries could be answered")
    exit_with_failures(failed)


@cli.command()
def evaluate(
    index: IndexArgument,
    queries: Annotated[str, typer.Option(help="Folder of query images, Parquet or tar files.")],
    submodels: Annotated[
        str, typer.Option(help="Comma-separated; `mix` adds a spread of Mix'n'Match ones.")
    ] = "S,M,L,XL",
    k: HitsOption = 10,
    out: Annotated[Path | None, typer.Option(help="Folder for CSV, JSON and plot.")] = None,
    encoder: EncoderOption = None,
    device: DeviceOption = Device.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Compare recall against compute for several encoder sizes."""
    from app.sizes import parse_sizes
    from indexing import Corpus
    from retrieval import evaluate as measure
    from retrieval.report import format_table, write_report

    retriever = open_retriever(index, encoder, device)
    try:
        sizes = parse_sizes(submodels, retriever.encoder.config)
    except ValueError as error:
        bad_usage(error)
    frontier = measure(retriever, Corpus.open(queries), sizes, k=k, progress=show_progress())
    if as_json:
        for point in frontier.points:
            show_json(point.to_dict())
    else:
        show(format_table(frontier))
    if out is not None:
        write_report(frontier, out)
        say(f"Report: {out}/frontier.png, report.csv, report.json")
    exit_with_failures(frontier.conditions.unreadable if frontier.conditions else 0)


@cli.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, what it can do here, and what is in the way."""
    from app.doctor import examine, render

    report = examine()
    if as_json:
        show_json(report)
    else:
        show(render(report))
    if report["problems"]:
        raise typer.Exit(FAILED)


@cli.command()
def app(
    index: Annotated[
        Path | None, typer.Argument(metavar="INDEX", help="Folder of the index.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="report.json of an evaluation, for the frontier plot.")
    ] = None,
    encoder: EncoderOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
) -> None:
    """Open the page in a browser (on this machine only)."""
    if index is not None:
        from indexing.storage import read_finished

        read_finished(index)  # before a server is started for nothing
    page = Path(__file__).with_name("streamlit_app.py")
    options = {"--index": index, "--report": report, "--encoder": encoder}
    given = [str(part) for pair in options.items() if pair[1] is not None for part in pair]
    command = [
        # -P: a folder called `app` where the command is typed must not stand in for ours.
        sys.executable, "-P", "-m", "streamlit", "run", str(page),
        "--server.address", "127.0.0.1", "--server.port", str(port),
        "--server.maxUploadSize", "20", "--browser.gatherUsageStats", "false",
        "--client.toolbarMode", "minimal",
        "--", *given,
    ]  # fmt: skip
    environment = {**os.environ, "STREAMLIT_SERVER_SHOW_EMAIL_PROMPT": "false"}
    done = subprocess.run(command, check=False, env=environment)  # noqa: S603
    raise typer.Exit(done.returncode)


def main() -> None:
    """Run the command: data on stdout, one line per error on stderr, a meaningful exit code."""
    # We refuse images that are too large ourselves, with a message of our own.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    try:
        code = cli(standalone_mode=False)
    except ClickException as error:
        _fail(f"{error.format_message().rstrip('.')}; see --help", BAD_USAGE)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:
        if os.environ.get("MATVIT_TRACEBACK"):
            raise
        _fail(_describe(error), FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _describe(error: Exception) -> str:
    """Say what went wrong; of what nobody foresaw, also how to learn more."""
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return one_line(error)
    kind = type(error).__name__
    return f"{kind}: {one_line(error)} (for a traceback, set MATVIT_TRACEBACK=1)"


def _fail(message: str, code: int) -> NoReturn:
    say(f"error: {' '.join(message.split())}")
    sys.exit(code)


if __name__ == "__main__":  # torchrun -m app.cli
    main()
