"""Decoding many images at once: in the calling thread, in threads, or in processes.

Pillow gives up Python's lock while it decodes and resizes, so threads are the default. Processes
cost a copy of every image and survive what threads do not: a decoder that crashes on a damaged
file takes one small process with it and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from indexing.corpus.decode_process import DecodeProcesses, decode
from matvit import Decoded, Preprocess

_Result = TypeVar("_Result")


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
        self._processes = DecodeProcesses(preprocess) if decoders.processes else None

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
        return decode(self.preprocess, data)

    def submit(self, task: Callable[..., _Result], *arguments: object) -> Future[_Result]:
        """Have a worker do a task; without workers it is done at once."""
        if self._threads is not None:
            return self._threads.submit(task, *arguments)
        done: Future[_Result] = Future()
        done.set_result(task(*arguments))
        return done


def _available_cpus() -> int:
    """How many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
