"""The `matvit` command.

The faces of the packages import torch, timm and FAISS when a name of theirs is first asked for, so
that `--help` answers at once. What has no such face is imported inside the commands, and the
commands when they are asked for.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Annotated, NoReturn

import typer

import matvit
from app.commands import group
from app.output import (
    BAD_USAGE,
    DONE,
    FAILED,
    INTERRUPTED,
    STDOUT,
    drop_unwritten,
    hold_closed_streams,
    missing,
    one_line,
    say,
    show,
)

cli = group(
    {
        "demo": "app.demo_cli:demo",
        "doctor": "app.demo_cli:doctor",
        "app": "app.demo_cli:app",
        "index": "app.index_cli:index_cli",
        "search": "app.search_cli:search",
        "evaluate": "app.evaluate_cli:evaluate",
        "tune": "app.tune_cli:tune",
        "train": "app.encoder_cli:train",
        "extract": "app.encoder_cli:extract",
        "convert": "app.convert_cli:convert",
        "import-scenic": "app.convert_cli:import_scenic",
        "serve": "app.serve_cli:serve",
    },
    about="Image search: embed the database once with the full encoder, ask it with smaller ones.",
)


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
