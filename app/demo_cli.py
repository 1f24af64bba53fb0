"""The `matvit demo`, `matvit doctor` and `matvit app` commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import indexing
import matvit
from app.options import DEMO, Device, DeviceOption, EncoderOption, JsonOption
from app.output import FAILED, exit_with_failures, say, show, show_frontier, show_json


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
