"""No settings where the command is typed open the page to other origins, names or addresses."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request

from served import ROOT, hostile_folder, serving


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


def test_page_stays_closed_to_other_origins_and_names(tmp_path):
    with serving(hostile_folder(tmp_path)) as (_, port):
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
