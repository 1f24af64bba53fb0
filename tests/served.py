"""The page as a command serves it, where settings lie about that would open it to others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOSTILE = """
[server]
enableCORS = false
enableXsrfProtection = false
address = "0.0.0.0"
baseUrlPath = "elsewhere"
corsAllowedOrigins = ["http://evil.example"]
allowedHosts = ["*"]
enableStaticServing = true
enableAgentApi = true
[browser]
serverAddress = "evil.example"
[client]
allowedOrigins = ["http://evil.example"]
[global]
developmentMode = true
[theme]
font = "Evil:http://evil.example/font.css"
"""


def hostile_folder(place: Path) -> Path:
    """Make a folder and a home whose settings would open the page, were they obeyed."""
    for folder in (place / ".streamlit", place / "home" / ".streamlit"):
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(HOSTILE)
    return place


@contextmanager
def serving(place: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"HOME": str(place / "home"), "PYTHONPATH": str(ROOT)}
    with (place / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "app", "--port", str(port)], cwd=place,
            env={**os.environ, "STREAMLIT_SERVER_HEADLESS": "true", **variables},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not answers(port):
            assert server.poll() is None, (place / "log").read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)
        yield server, port
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
