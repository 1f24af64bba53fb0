"""A server under load: always the full size, always the smallest, and following the load.

    python benchmarks/serving.py [--index INDEX --queries IMAGES --encoder NAME] [--requests 100000]

What the server sustains at full size is measured first, by clients that wait for their answers.
Then questions come at random moments, at .5, 1, 2 and 4 times that rate, from another process that
waits for nobody; milliseconds count from the moment a question was due. Overlap is that of ten hits
with the full encoder's. At last some requests more are sent, to see memory and descriptors. Without
`--index` the photographs of the demo are indexed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, without_paths, write_result

from app.demo import split
from app.places import write_places
from indexing import Corpus, ImageIndex
from matvit import DEFAULT_ENCODER, count_macs, load_encoder
from retrieval import Retriever

FACTORS = (0.5, 1, 2, 4)
K, CLIENTS, MOST_OPEN = 10, 8, 512


def main() -> None:
    """Measure and write the result; or be the process that asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--queries")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--slo-ms", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=12, help="of each load")
    parser.add_argument("--requests", type=int, default=100_000, help="to watch memory over")
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--asking", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.asking:
        folder, port, rate, seconds = given.asking
        print(json.dumps(asyncio.run(load(Path(folder), int(port), float(rate), float(seconds)))))
        return
    with tempfile.TemporaryDirectory() as work:
        write_result("serving", measure(given, Path(work)))


def measure(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Serve in three ways, under four loads each."""
    encoder = load_encoder(given.encoder)
    if given.index is None:
        database, asking = split(Corpus.open(write_places(work / "places")))
        index = ImageIndex.build(encoder, database, work / "index")
    else:
        index, asking = ImageIndex.open(given.index), Corpus.open(given.queries)
    images = [asking.read(row) for row in range(min(len(asking), 300))]
    for number, data in enumerate(images):
        (work / f"{number:03}.query").write_bytes(data)
    wanted = [
        {hit.id for hit in hits} for hits in Retriever(encoder, index).search_batch(images, k=K)
    ]
    macs = {size: count_macs(encoder.config, encoder.submodel(size)) for size in ("S", "XL")}
    ways = {
        "always XL": ["--submodel", "XL"],
        "always S": ["--submodel", "S"],
        "following": ["--slo-ms", str(given.slo_ms)],
    }
    sustained, rows = 0.0, []
    for way, options in ways.items():
        with serving(index.path, given, options) as (server, port):
            if not sustained:
                sustained = asyncio.run(capacity(work, port))
            for factor in FACTORS:
                found = ask(work, port, factor * sustained, given.seconds)
                rows.append({"way": way, "factor": factor, **judge(found, wanted, macs["XL"])})
                print(rows[-1], file=sys.stderr)
                time.sleep(3)  # what the last load left behind is no part of the next
            if way == "following":
                memory = watch(work, port, server.pid, sustained, given.requests)
    return {
        **provenance("python benchmarks/serving.py " + without_paths(sys.argv[1:])),
        "encoder": given.encoder,
        "images": len(index),
        "server_threads": given.threads,
        "slo_ms": given.slo_ms,
        "sustained_per_s": sustained,
        "seconds": given.seconds,
        "share_of_s": macs["S"] / macs["XL"],
        "rows": rows,
        "memory": memory,
    }


@contextmanager
def serving(
    index: Path, given: argparse.Namespace, options: list[str]
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a server until the end of the `with` statement."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "app.cli", "serve", str(index), "--port", str(port),
        "--encoder", given.encoder, *options,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    server = subprocess.Popen(command, env=environment)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                if server.poll() is not None:
                    raise
                time.sleep(0.05)
        yield server, port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def ask(work: Path, port: int, rate: float, seconds: float) -> list[Any]:
    """Ask from another process."""
    command = [sys.executable, __file__, "--asking", str(work), str(port), str(rate), str(seconds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answers: list[Any] = json.loads(done.stdout)
    return answers


async def capacity(work: Path, port: int, seconds: float = 6.0) -> float:
    """Answers in a second, to clients that each wait for theirs."""
    images, until, answered = queries(work), time.perf_counter() + seconds, 0

    async def client(number: int) -> None:
        nonlocal answered
        connection = Connection(port)
        while time.perf_counter() < until:
            await connection.search(images[number % len(images)])
            number += CLIENTS
            answered += 1
        connection.close()

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return answered / seconds


async def load(work: Path, port: int, rate: float, seconds: float) -> list[Any]:
    """Ask at random moments, whatever becomes of it.

    Returns:
        Of each question its number, milliseconds, status, submodel's compute and hits.
    """
    images, rng = queries(work), random.Random(0)  # noqa: S311 -- no secret
    idle: list[Connection] = []
    answers: list[Any] = []
    start = time.perf_counter()
    opened = asyncio.Semaphore(MOST_OPEN)

    async def question(number: int, due: float) -> None:
        async with opened:
            connection = idle.pop() if idle else Connection(port)
            status, said = await connection.search(images[number % len(images)])
            ms = 1000 * (time.perf_counter() - start - due)
            idle.append(connection)
        hits = [hit["id"] for hit in said["hits"]] if status == 200 else []
        answers.append([number % len(images), ms, status, said.get("macs", 0), hits])

    tasks, due, number = [], 0.0, 0
    while (due := due + rng.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        tasks.append(asyncio.create_task(question(number, due)))
        number += 1
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return answers


class Connection:
    """One connection to the server; libraries would cost more than the server does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def search(self, image: bytes) -> tuple[int, Any]:
        """Ask, and return status and answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = (
            f"POST /search?k={K} HTTP/1.1\r\nHost: here\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(image)}\r\n\r\n"
        )
        writer.write(head.encode() + image)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        (length,) = (int(line[15:]) for line in lines if line.startswith("content-length:"))
        return int(lines[0].split()[1]), json.loads(await reader.readexactly(length))

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()


def queries(work: Path) -> list[bytes]:
    """Read the images to ask with."""
    return [path.read_bytes() for path in sorted(work.glob("*.query"))]


def judge(answers: list[Any], wanted: list[set[int]], full: int) -> dict[str, Any]:
    """Say how long answers took, and what was lost."""
    good = [answer for answer in answers if answer[2] == 200]
    ms = [answer[1] for answer in good] or [0.0]
    shared = [len(wanted[answer[0]] & set(answer[4])) / K for answer in good]
    return {
        "asked": len(answers),
        "p50_ms": float(np.percentile(ms, 50)),
        "p95_ms": float(np.percentile(ms, 95)),
        "errors": 1 - len(good) / max(1, len(answers)),
        "statuses": dict(Counter(str(answer[2]) for answer in answers)),
        "macs_fraction": float(np.mean([answer[3] / full for answer in good] or [0.0])),
        "overlap@10": float(np.mean(shared or [0.0])),
    }


def watch(work: Path, port: int, pid: int, rate: float, requests: int) -> list[dict[str, int]]:
    """Send many requests, and look at the server's memory and descriptors on the way."""
    rows, sent = [state_of(pid, 0)], 0
    while sent < requests:
        sent += len(ask(work, port, rate, min(60.0, (requests - sent) / rate + 0.1)))
        rows.append(state_of(pid, sent))
        print(rows[-1], file=sys.stderr)
    return rows


def state_of(pid: int, sent: int) -> dict[str, int]:
    """Kilobytes in memory and open descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return {
        "requests": sent,
        "kilobytes": int(line.split()[1]),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }


if __name__ == "__main__":
    main()
