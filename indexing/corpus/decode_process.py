"""Decoding in processes of their own: both ends of the pipes between them and this one.

Requests and answers are plain bytes on the standard input and output of a process. It ends when
its input does, so it never outlives the process that started it, however that one ends. Nothing
here imports torch or FAISS: a process is up in a fraction of a second, and small.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import BinaryIO

import numpy as np

from matvit import Decoded, Preprocess

_PROGRAM = "from indexing.corpus.decode_process import main; main()"
_ATTEMPTS = 2  # a process may also be killed for what the image has nothing to do with
_SECONDS_PER_IMAGE = 120  # a decoder that takes longer is stopped, and with it its process
_SECONDS_TO_END = 5
_TIMED_OUT = -14  # what Popen makes of SIGALRM

# Of what follows in a request: first the settings as JSON, then one image file after another.
_LENGTH = struct.Struct("<Q")
# Whether the image could be decoded; then width and height, or the length of the reason and 0.
_ANSWER = struct.Struct("<?II")
_READY = b"R"  # sent once, when the settings are understood


class DecodeError(ValueError):
    """An image that cannot be decoded.

    Attributes:
        kind: Class name of the exception behind it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def decode(preprocess: Preprocess, data: bytes) -> Decoded:
    """Decode one image file in this process.

    Raises:
        DecodeError: If it cannot be read as an image.
    """
    try:
        return preprocess.decode(data)
    except ValueError as error:
        raise DecodeError(type(error.__cause__ or error).__name__, str(error)) from error


class DecodeProcesses:
    """Decoding processes, started when they are first needed; threads borrow one at a time."""

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess
        self._idle: SimpleQueue[_Process] = SimpleQueue()

    def decode(self, data: bytes) -> Decoded:
        """Decode in a process of its own; a crash is tried once more, in a fresh one."""
        for _ in range(_ATTEMPTS):
            process = self._take()
            try:
                decoded = process.decode(data)
            except (BrokenPipeError, EOFError):
                code = process.end()
                if code == _TIMED_OUT:
                    raise DecodeError(
                        "TimeoutError", f"decoding took longer than {_SECONDS_PER_IMAGE} seconds"
                    ) from None
            except DecodeError:
                self._idle.put(process)
                raise
            except BaseException:
                process.end()
                raise
            else:
                self._idle.put(process)
                return decoded
        raise DecodeError("DecoderCrash", f"the decoder crashed over it {_describe(code)}")

    def close(self) -> None:
        """End all processes; none may be borrowed."""
        with suppress(Empty):
            while True:
                self._idle.get_nowait().end()

    def _take(self) -> _Process:
        try:
            return self._idle.get_nowait()
        except Empty:
            return _Process(self._preprocess)


class _Process:
    """One process that runs `main`.

    It is started as a program, not forked: torch and FAISS have threads, which a fork would leave
    in any state. Nor is it a child of `multiprocessing`, which runs the caller's script again.

    Raises:
        RuntimeError: If it does not start.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        size = preprocess.img_size
        self._shape = (size, size, 3)
        self._process = subprocess.Popen(  # noqa: S603 -- our own program
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends this one
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        try:
            self._send(json.dumps(preprocess.to_dict()).encode())
            self._receive(bytearray(len(_READY)))
        except (BrokenPipeError, EOFError):
            raise RuntimeError(
                f"a decoding process did not start {_describe(self.end())}; decode in threads"
            ) from None

    def decode(self, data: bytes) -> Decoded:
        """Ask for one image.

        Raises:
            DecodeError: If it cannot be decoded.
            BrokenPipeError: If the process is gone.
            EOFError: If it went away over this image.
        """
        self._send(data)
        header = bytearray(_ANSWER.size)
        self._receive(header)
        decoded, first, second = _ANSWER.unpack(header)
        if not decoded:
            reason = bytearray(first)
            self._receive(reason)
            raise DecodeError(*json.loads(reason))
        pixels = np.empty(self._shape, dtype=np.uint8)
        self._receive(pixels.data.cast("B"))
        return Decoded(pixels, first, second)

    def end(self) -> int:
        """Let the process end, kill it if it does not, and return its exit code."""
        with suppress(BrokenPipeError):
            self._requests.close()
        try:
            code = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._answers.close()
        return code

    def _send(self, data: bytes) -> None:
        self._requests.write(_LENGTH.pack(len(data)))
        self._requests.write(data)
        self._requests.flush()

    def _receive(self, target: bytearray | memoryview) -> None:
        if self._answers.readinto(target) != len(target):  # type: ignore[attr-defined]
            raise EOFError("the decoding process is gone")


def _describe(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"(exit code {code})"
    try:
        return f"({signal.Signals(-code).name})"
    except ValueError:
        return f"(signal {-code})"


def main() -> None:
    """Decode what is asked for on the standard input until nothing more is."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a library that prints must not print into the answers
    settings = _read_request(requests)
    if settings is None:
        return
    preprocess = Preprocess.from_dict(json.loads(settings))
    try:
        _write(answers, _READY)
        while (data := _read_request(requests)) is not None:
            _limit_seconds(_SECONDS_PER_IMAGE)
            answer = _answer(preprocess, data)
            _limit_seconds(0)
            for part in answer:
                _write(answers, part)
    except BrokenPipeError:
        sys.exit(1)


def _answer(preprocess: Preprocess, data: bytes) -> tuple[bytes, memoryview | bytes]:
    try:
        decoded = decode(preprocess, data)
    except DecodeError as error:
        reason = json.dumps([error.kind, str(error)]).encode()
        return _ANSWER.pack(False, len(reason), 0), reason
    return _ANSWER.pack(True, decoded.width, decoded.height), decoded.pixels.data.cast("B")


def _read_request(stream: BinaryIO) -> bytes | None:
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(header)
    data = stream.read(length)
    return data if len(data) == length else None


def _write(stream: BinaryIO, data: memoryview | bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def _limit_seconds(seconds: int) -> None:
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(seconds)
