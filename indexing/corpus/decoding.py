"""Decoding many images at once: in the calling thread, in threads, or in processes.

Pillow gives up Python's lock while it decodes and resizes, so threads are the default. Processes
cost a copy of every image and survive what threads do not: a decoder that crashes on a damaged
file takes one small process with it and nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from indexing.corpus.decode_worker import ANSWER, LENGTH, READY, SECONDS_PER_IMAGE
from matvit import Decoded, Preprocess

_Result = TypeVar("_Result")

_PROGRAM = "from indexing.corpus.decode_worker import main; main()"
_ATTEMPTS = 2  # a process may also be killed for what the image has nothing to do with
_SECONDS_TO_END = 5
_TIMED_OUT = -14  # what Popen makes of SIGALRM


class DecodeError(ValueError):
    """An image that cannot be decoded.

    Attributes:
        kind: Class name of the exception behind it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Decoders:
    """Who decodes images, and how many images they hand over at a time.

    The images come out the same whatever the workers.

    Args:
        workers: How many work side by side; None for one per CPU, 0 for the calling thread alone.
        processes: Work in processes instead of threads: a decoder that crashes over a damaged
            file then costs one image and not the program.
        batch_size: Images per batch, those that fail included.

    Raises:
        ValueError: If `workers` is below 0 or `batch_size` below 1, or 0 processes are asked for.
    """

    workers: int | None = None
    processes: bool = False
    batch_size: int = 256

    def __post_init__(self) -> None:
        fewest = int(self.processes)
        if self.workers is not None and self.workers < fewest:
            raise ValueError(
                f"workers must be at least {fewest}{' with processes' if self.processes else ''}, "
                f"got {self.workers}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


class DecodePool:
    """Decoders at work; use it in a `with` statement, for any number of runs.

    Args:
        preprocess: How images become pixels.
        decoders: Who works, and in which batches.

    Attributes:
        preprocess: How images become pixels.
        workers: How many there are, 0 for none but the calling thread.
        batch_size: Images per batch, those that fail included.
    """

    def __init__(self, preprocess: Preprocess, decoders: Decoders) -> None:
        self.preprocess = preprocess
        self.workers = _available_cpus() if decoders.workers is None else decoders.workers
        self.batch_size = decoders.batch_size
        self._threads = ThreadPoolExecutor(self.workers, "decode") if self.workers else None
        self._processes = _Processes(preprocess) if decoders.processes else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and end all workers."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        if self._processes is not None:
            self._processes.close()

    def decode(self, data: bytes) -> Decoded:
        """Decode one image file; called from within a task.

        Raises:
            DecodeError: If it cannot be read as an image, or the decoder crashed over it.
        """
        if self._processes is not None:
            return self._processes.decode(data)
        try:
            return self.preprocess.decode(data)
        except ValueError as error:
            raise DecodeError(type(error.__cause__ or error).__name__, str(error)) from error

    def submit(self, task: Callable[..., _Result], *arguments: object) -> Future[_Result]:
        """Have a worker do a task; without workers it is done at once."""
        if self._threads is not None:
            return self._threads.submit(task, *arguments)
        done: Future[_Result] = Future()
        done.set_result(task(*arguments))
        return done


class _Processes:
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
                        "TimeoutError", f"decoding took longer than {SECONDS_PER_IMAGE} seconds"
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
    """One process that runs `indexing.corpus.decode_worker`.

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
            self._receive(bytearray(len(READY)))
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
        header = bytearray(ANSWER.size)
        self._receive(header)
        decoded, first, second = ANSWER.unpack(header)
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
        self._requests.write(LENGTH.pack(len(data)))
        self._requests.write(data)
        self._requests.flush()

    def _receive(self, target: bytearray | memoryview) -> None:
        if self._answers.readinto(target) != len(target):  # type: ignore[attr-defined]
            raise EOFError("the decoding process is gone")


def _available_cpus() -> int:
    """How many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _describe(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"(exit code {code})"
    try:
        return f"({signal.Signals(-code).name})"
    except ValueError:
        return f"(signal {-code})"
