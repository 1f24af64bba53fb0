"""The page ends with the command that started it, and no file where it is typed opens it."""

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

import pytest

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A folder and a home whose settings would open the page, were they obeyed."""
    place = tmp_path_factory.mktemp("hostile")
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


def status(port: int, path: str, **headers: str) -> int:
    """Ask for a page over a socket, with headers that no library would send; return the status."""
    lines = [f"GET {path} HTTP/1.1"] + [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(connection.recv(64).split()[1])


def asked_to_talk(port: int, *, origin: str, host: str) -> int:
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }  # fmt: skip
    return status(port, "/_stcore/stream", Host=host, Origin=origin, **upgrade)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_command_ends_the_server(hostile, number):
    with serving(hostile) as (server, port):
        server.send_signal(number)
        server.wait(timeout=20)
        assert not answers(port)
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))


def test_page_stays_closed_to_other_origins_and_names(hostile):
    with serving(hostile) as (_, port):
        again = subprocess.run(
            [sys.executable, "-m", "app.cli", "app", "--port", str(port)],
            check=False, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        taken = f"error: port {port}: Address already in use; choose another with --port\n"
        assert (again.returncode, again.stderr) == (1, taken)
        here, evil = f"127.0.0.1:{port}", "http://evil.example"
        assert asked_to_talk(port, origin=f"http://{here}", host=here) == 101
        local = f"localhost:{port}"
        assert asked_to_talk(port, origin=f"http://{local}", host=local) == 101
        assert asked_to_talk(port, origin=evil, host=here) == 403
        assert asked_to_talk(port, origin=f"{evil}:{port}", host=f"evil.example:{port}") == 403
        with urllib.request.urlopen(f"http://{here}/_stcore/host-config") as answer:
            assert b"evil" not in answer.read()
        with socket.socket() as other:  # another address of this machine
            assert other.connect_ex(("127.0.0.2", port)) != 0
