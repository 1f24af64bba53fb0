"""`matvit serve`: an index that answers over HTTP."""

from __future__ import annotations

import ipaddress
import os
import socket
from importlib import import_module
from pathlib import Path
from typing import Annotated

import msgspec
import typer

import indexing
from app.options import EncoderOption, IndexArgument, bad_usage
from app.output import say

_GRACE_S = 10


def serve(
    index: IndexArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen at; any other than this machine wants a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    encoder: EncoderOption = None,
    submodel: Annotated[
        str | None,
        typer.Option(help="What answers; with --slo-ms the largest that may [default: XL]."),
    ] = None,
    slo_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Follow the load: as large as lets 95 of 100 answers come within that many "
            "milliseconds [default: always the same size].",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes; they share nothing but the files.")
    ] = 1,
    max_bytes: Annotated[int, typer.Option(min=1, help="Of an upload.")] = 20_000_000,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Questions that may wait; others are told to come again.")
    ] = 64,
    time_limit: Annotated[
        float, typer.Option(min=0.01, help="Seconds that a question may wait for its answer.")
    ] = 10.0,
    page: Annotated[
        Path | None,
        typer.Option(
            help="Folder of files to serve at /page/, such as the page that encodes in the browser."
        ),
    ] = None,
) -> None:
    """Answer searches over HTTP; what can be asked is at /docs.

    If the environment has MATVIT_TOKEN, requests must bear it: Authorization: Bearer TOKEN.
    """
    uvicorn = import_module("uvicorn")
    from app.serving.routes import SETTINGS, TOKEN, make_app
    from app.serving.server import Settings, open_served

    if slo_ms is not None and not slo_ms > 0:
        bad_usage(ValueError(f"--slo-ms must be above 0, got {slo_ms:g}"))
    token = os.environ.get(TOKEN)
    if not token and not _is_this_machine(host):
        bad_usage(
            ValueError(f"--host {host} lets other machines ask; set {TOKEN} to what they must bear")
        )
    if page is not None and not (page / "index.html").is_file():
        bad_usage(ValueError(f"--page {page} has no index.html; name the folder that has it"))
    indexing.read_finished(index)  # before a server is started for nothing
    settings = Settings(
        index=str(index.absolute()),
        encoder=_found(encoder),
        submodel=submodel,
        slo_ms=slo_ms,
        most_bytes=max_bytes,
        most_waiting=max_waiting,
        limit_s=time_limit,
        page=None if page is None else str(page.absolute()),
    )
    _check_port(host, port)
    # Whatever is wrong with it is said here, though every worker opens it for itself.
    retriever = open_served(settings)
    os.environ[SETTINGS] = msgspec.json.encode(settings).decode()
    many = "app.serving.routes:from_environment"
    say(f"Serving {len(retriever.index):,} images at http://{host}:{port}; stop with Ctrl+C.")
    uvicorn.run(
        make_app(settings, token, retriever) if workers == 1 else many,
        factory=workers > 1,
        host=host,
        port=port,
        workers=workers,
        log_level="warning",
        timeout_graceful_shutdown=_GRACE_S,
        server_header=False,
    )


def _found(encoder: str | None) -> str | None:
    """Name the folder of an encoder wherever a worker is started."""
    is_folder = encoder is not None and Path(encoder).exists()
    return str(Path(str(encoder)).absolute()) if is_folder else encoder


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_port(host: str, port: int) -> None:
    """Say that a port cannot be had before anything is loaded.

    Raises:
        OSError: If it cannot.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as trial:
            if os.name == "posix":  # elsewhere it means another thing
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        reason = f"{error.strerror}; choose another with --host and --port"
        raise type(error)(error.errno, reason, f"{host} port {port}") from error
