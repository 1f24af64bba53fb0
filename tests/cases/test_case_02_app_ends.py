"""The server of the page ends with the command that started it."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from served import answers, hostile_folder, serving


@contextmanager
def by_default(number: signal.Signals) -> Iterator[None]:
    """Have processes that start now obey a signal, even under `nohup`, which has it ignored."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_command_ends_the_server(tmp_path, number):
    with by_default(number), serving(hostile_folder(tmp_path)) as (server, port):
        server.send_signal(number)
        server.wait(timeout=20)
        assert not answers(port)
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))
