"""`matvit serve` as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def index(matvit, photo_folder, encoder, tmp_path) -> Path:
    path = tmp_path / "i"
    assert matvit("index", "build", photo_folder, "--out", path, "--encoder", encoder)[0] == 0
    return path


def free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_server_answers_until_it_is_told_to_end(index, photo_folder, encoder, tmp_path):
    port = free_port()
    command = [
        sys.executable, "-m", "app.cli", "serve", index, "--port", port, "--encoder", encoder,
        "--slo-ms", 1000,
    ]  # fmt: skip
    log = (tmp_path / "log").open("w+")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        health = None
        while health is None and time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                    health = json.load(answer)
            except OSError:
                time.sleep(0.05)
        assert health is not None, (tmp_path / "log").read_text()
        assert health["images"] == 12
        image = next(photo_folder.rglob("*.png")).read_bytes()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/search?k=1", image) as answer:
            (hit,) = json.load(answer)["hits"]
        assert hit["score"] == pytest.approx(1, abs=1e-2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        said = (tmp_path / "log").read_text()
        assert said.splitlines()[0] == (
            f"Serving 12 images at http://127.0.0.1:{port}; stop with Ctrl+C."
        )
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "--host 0.0.0.0 lets other machines ask; set MATVIT_TOKEN"),
        (["--slo-ms", "0"], 2, "--slo-ms must be above 0, got 0"),
        (["--submodel", "Q"], 1, "unknown size 'Q'"),
        (["--page", "none"], 2, "--page none has no index.html; name the folder that has it"),
        (["--port", "{taken}"], 1, "choose another with --host and --port"),
    ],
)
def test_mistakes_are_one_line(matvit, index, encoder, monkeypatch, options, code, message):
    monkeypatch.delenv("MATVIT_TOKEN", raising=False)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        given = [word.format(taken=taken.getsockname()[1]) for word in options]
        found, out, err = matvit("serve", index, "--encoder", encoder, *given)
    assert (found, out) == (code, "")
    assert message in " ".join(err.replace("│", " ").split())


def test_what_is_no_index_is_said_at_once(matvit, tmp_path):
    code, out, err = matvit("serve", tmp_path / "none")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no index at" in err
