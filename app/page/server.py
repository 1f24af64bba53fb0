"""The server of the page: for this machine only, whatever it is told elsewhere."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from app.page.looks import theme_options

_HERE = "127.0.0.1"
_PAGE = Path(__file__).parent.with_name("streamlit_app.py")


def serve(port: int, given: Mapping[str, str | Path | None]) -> NoReturn:
    """Become the server of the page.

    In place of this process: nothing is left behind that a signal to it would not end.

    Args:
        port: Where it listens.
        given: Arguments of the page by name; paths from where the command was typed.

    Raises:
        ModuleNotFoundError: If Streamlit is not installed.
        OSError: If the port cannot be had.
    """
    if find_spec("streamlit") is None:
        raise ModuleNotFoundError("No module named 'streamlit'", name="streamlit")
    _check_port(port)
    command, environment = command_of(port, given), environment_of(os.environ)
    os.chdir(_PAGE.parent)  # Streamlit obeys a folder `.streamlit` where it is started
    if sys.platform == "win32":  # which has no such replacement
        sys.exit(subprocess.run(command, check=False, env=environment).returncode)  # noqa: S603
    os.execve(command[0], command, environment)  # noqa: S606


def _check_port(port: int) -> None:
    with socket.socket() as trial:
        if os.name == "posix":  # elsewhere it means another thing
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((_HERE, port))
        except OSError as error:
            reason = f"{error.strerror}; choose another with --port"
            raise type(error)(error.errno, reason, f"port {port}") from error


def command_of(port: int, given: Mapping[str, str | Path | None]) -> list[str]:
    """Name every option that keeps the page closed: a file or a variable cannot open it again."""
    here = f"http://{_HERE}:{port}"
    options = {
        "server.address": _HERE,
        "server.port": port,
        "server.baseUrlPath": "",
        "server.enableCORS": "true",
        "server.corsAllowedOrigins": here,
        "server.enableXsrfProtection": "true",
        "server.enableStaticServing": "false",
        "server.enableAgentApi": "false",
        "server.customComponentBaseUrlPath": "",
        "server.maxUploadSize": 20,
        "server.fileWatcherType": "none",
        "server.runOnSave": "false",
        "browser.serverAddress": _HERE,
        "browser.serverPort": port,
        "browser.gatherUsageStats": "false",
        "client.allowedOrigins": here,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "global.developmentMode": "false",
    }
    # Names under which the page is asked for; another one is another site that leads here.
    hosts = [f"--server.allowedHosts={host}" for host in (_HERE, "localhost")]
    told = {name: value for name, value in given.items() if value is not None}
    return [
        # -P: a folder called `app` where the command is typed must not stand in for ours.
        sys.executable, "-P", "-m", "streamlit", "run", str(_PAGE),
        *(f"--{name}={value}" for name, value in options.items()), *hosts, *theme_options(),
        "--", *(f"--{name}={_absolute(value)}" for name, value in told.items()),
    ]  # fmt: skip


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what the server finds in its environment, which is read in another folder."""
    places = map(Path, filter(None, variables.get("PYTHONPATH", "").split(os.pathsep)))
    return {
        # Arrow's own pool keeps, for each thread that ever read a Parquet file, what it read.
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        **variables,
        "PYTHONPATH": os.pathsep.join(map(_absolute, places)),
        "STREAMLIT_SERVER_SHOW_EMAIL_PROMPT": "false",
    }


def _absolute(value: str | Path) -> str:
    """Make a path one for every folder; leave alone what is none, such as a bundled encoder."""
    return str(Path(value).absolute()) if isinstance(value, Path) else value
