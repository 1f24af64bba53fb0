"""A process that decodes images and nothing else; `indexing.corpus.decoding` starts and asks it.

Requests and answers go through its standard input and output as plain bytes. It ends when its
input does, so it never outlives the process that started it, however that one ends. It imports
neither torch nor FAISS: it is up in a fraction of a second and small.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from typing import BinaryIO

from matvit import Preprocess

LENGTH = struct.Struct("<Q")
"""Of what follows in a request: first the settings as JSON, then one image file after another."""

ANSWER = struct.Struct("<?II")
"""Whether the image could be decoded; then width and height, or the length of the reason and 0."""

READY = b"R"
"""Sent once, when the settings are understood."""

SECONDS_PER_IMAGE = 120
"""A decoder that takes longer is stopped, and with it this process."""


def main() -> None:
    """Answer requests until there are no more."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a library that prints must not print into the answers
    settings = _read_request(requests)
    if settings is None:
        return
    preprocess = Preprocess.from_dict(json.loads(settings))
    try:
        _write(answers, READY)
        while (data := _read_request(requests)) is not None:
            _limit_seconds(SECONDS_PER_IMAGE)
            answer = _decode(preprocess, data)
            _limit_seconds(0)
            for part in answer:
                _write(answers, part)
    except BrokenPipeError:
        sys.exit(1)


def _decode(preprocess: Preprocess, data: bytes) -> tuple[bytes, memoryview | bytes]:
    try:
        decoded = preprocess.decode(data)
    except ValueError as error:
        cause = type(error.__cause__ or error).__name__
        reason = json.dumps([cause, str(error)]).encode()
        return ANSWER.pack(False, len(reason), 0), reason
    return ANSWER.pack(True, decoded.width, decoded.height), decoded.pixels.data.cast("B")


def _read_request(stream: BinaryIO) -> bytes | None:
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(header)
    data = stream.read(length)
    return data if len(data) == length else None


def _write(stream: BinaryIO, data: memoryview | bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def _limit_seconds(seconds: int) -> None:
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(seconds)
