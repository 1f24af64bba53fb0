"""The `matvit` command.

The faces of the packages import torch, timm and FAISS when a name of theirs is first asked for, so
that `--help` answers at once. What has no such face is imported inside the commands.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import indexing
import matvit
from app.adopt_cli import index_adopt
from app.convert_cli import convert, import_scenic
from app.duplicates_cli import index_duplicates
from app.encoder_cli import extract, train
from app.evaluate_cli import evaluate
from app.export_cli import index_export
from app.index_cli import index_cli
from app.options import (
    DEMO,
    Device,
    DeviceOption,
    EncoderOption,
    JsonOption,
)
from app.output import (
    BAD_USAGE,
    DONE,
    FAILED,
    INTERRUPTED,
    STDOUT,
    drop_unwritten,
    exit_with_failures,
    hold_closed_streams,
    missing,
    one_line,
    say,
    show,
    show_frontier,
    show_json,
)
from app.search_cli import search
from app.serve_cli import serve
from app.tune_cli import tune

cli = typer.Typer(
    help="Image search: embed the database once with the full encoder, ask it with smaller ones.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
index_cli.command("adopt")(index_adopt)
index_cli.command("export")(index_export)
index_cli.command("duplicates")(index_duplicates)
cli.add_typer(index_cli, name="index")


# Some versions of typer bring a click of their own; this is whichever one it raises.
ClickException: type[typer.BadParameter] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from app.doctor import installed

        show(f"matvit {installed('matvit-retrieval') or 'that is not installed'}")
        raise typer.Exit


@cli.callback()
def shared(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 -- its callback has seen it
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take what can be said before a command, and let no command be silent for long."""
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    context.with_resource(matvit.progress_of("still working", shown=leads, as_lines=True))


@cli.command()
def demo(
    images: Annotated[
        Path | None,
        typer.Option(help="Your own photos [default: those that come with scikit-image]."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for index and report.")] = DEMO,
    encoder: Annotated[str, typer.Option(help="Encoder to use.")] = "",
    device: DeviceOption = Device.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Show the whole story in one go, on your own photos with --images."""
    from app.demo import run_demo

    model = matvit.load_encoder(
        encoder or matvit.DEFAULT_ENCODER, device=matvit.resolve_device(device.value)
    )
    made = run_demo(model, out, images, progress=True)
    show_frontier(made.frontier, as_json=as_json, recommended=made.recommended)
    if made.summary is not None:
        say(made.summary)
    say(f"Report: {made.report}/frontier.png, report.csv, report.json")
    say(f"Open the page: {sys.argv[0]} app {made.index} --report {made.report}/report.json")
    exit_with_failures(made.failures)


@cli.command()
def doctor(
    encoder: Annotated[
        Path | None, typer.Option(help="Folder of an encoder in ONNX: does it compute rightly?")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, what it can do here, and what is in the way."""
    from app.doctor import examine, render

    report = examine(encoder)
    if as_json:
        show_json(report)
    else:
        show(*render(report))
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
        indexing.read_finished(index)  # before a server is started for nothing
    from app.page.server import serve as serve_page

    source = Path(encoder) if encoder is not None and Path(encoder).exists() else encoder
    serve_page(port, {"index": index, "report": report, "encoder": source, "demo": DEMO})


for command in (search, evaluate, tune, train, extract, convert, import_scenic, serve):
    cli.command()(command)


def main() -> None:
    """Run the command: data on stdout, one line per error on stderr, a meaningful exit code."""
    hold_closed_streams()
    # What is wrong with an image we say ourselves, where it matters.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    command = typer.main.get_command(cli)
    try:
        with command.make_context("matvit", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except ClickException as error:
        _fail(f"{error.format_message().rstrip('.')}; see --help", BAD_USAGE)
    except (typer.Abort, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # once more, and it ends without a word
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError as error:
        if error.filename not in (None, STDOUT):
            _fail(one_line(error), FAILED)
        drop_unwritten()  # the reader of our output, `head` say, has seen enough
        sys.exit(FAILED)
    except BaseException as error:
        if isinstance(error, SystemExit) or os.environ.get("MATVIT_TRACEBACK"):
            raise
        _fail(_describe(error), FAILED)
    sys.exit(DONE)


def _describe(error: BaseException) -> str:
    """Say what went wrong; of what nobody foresaw, also how to learn more."""
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return one_line(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {one_line(error)}; give it more, or less to do at once"
    if isinstance(error, ModuleNotFoundError) and (said := missing(error.name)) is not None:
        return said
    kind = type(error).__name__
    return f"{kind}: {one_line(error)} (for a traceback, set MATVIT_TRACEBACK=1)"


def _fail(message: str, code: int) -> NoReturn:
    say(f"error: {one_line(message)}")
    drop_unwritten()
    sys.exit(code)


if __name__ == "__main__":  # torchrun -m app.cli
    main()
