"""How long embedding a query takes on this machine: measured fairly, and remembered."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter, time
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float64, UInt8
from numpy import ndarray

from matvit import Encoder, Submodel, count_macs, embed, progress_of, read_json, write_atomically
from retrieval.frontier import OperatingPoint, is_int8

_BATCHES = 3
_TIMES = 30

_ROUNDS = 3
_DISORDER = 1.5
"""How many times as long a submodel may take as one that costs no less. Small ones take nearly the
same time, and a processor likes some widths better than others."""
_TRUSTED_S = 60.0


class Speed(NamedTuple):
    """How fast a submodel embeds, from decoded pixels to vectors.

    Attributes:
        latency_ms_p50: Median milliseconds of one image alone.
        latency_ms_p95: 95th percentile of the same.
        images_per_s: Images per second, in batches; NaN if left out.
    """

    latency_ms_p50: float
    latency_ms_p95: float
    images_per_s: float


def measure_speed(
    encoder: Encoder,
    submodels: Sequence[Submodel],
    pixels: UInt8[ndarray, "images height width 3"],
    *,
    latency_queries: int,
    batches: int = _BATCHES,
    progress: bool = False,
) -> list[Speed]:
    """Time the submodels on the same images, in turns.

    A machine that warms up or has other work to do slows all of them alike, since each image is
    embedded by every submodel before the next one's turn.

    Args:
        encoder: The encoder, on the device where it is to be timed.
        submodels: What to time.
        pixels: Images to embed, at least one. Throughput is that of all of them as one batch.
        latency_queries: Images embedded alone; those given are repeated if they are fewer.
        batches: Times that all of them are embedded together; 0 leaves out the throughput.
        progress: Show a progress bar on stderr.

    Returns:
        One measurement per submodel, in order.
    """

    def embed_all(submodel: Submodel, _: int) -> None:
        embed(encoder, pixels, submodel, batch_size=len(pixels))

    def embed_one(submodel: Submodel, turn: int) -> None:
        place = turn % len(pixels)
        embed(encoder, pixels[place : place + 1], submodel)

    turns = (batches + latency_queries) * len(submodels)
    with progress_of("timing", turns, unit="runs", shown=progress) as bar:
        together = _time_in_turns(embed_all, submodels, batches, bar.update)
        alone = _time_in_turns(embed_one, submodels, latency_queries, bar.update)
    p50, p95 = 1000 * np.percentile(alone, [50, 95], axis=0)
    per_second = len(pixels) / np.median(together, axis=0) if batches else np.full(len(p50), np.nan)
    return [Speed(*map(float, row)) for row in zip(p50, p95, per_second, strict=True)]


def measured_ms(
    encoder: Encoder,
    submodels: Iterable[Submodel | str],
    *,
    progress: bool = False,
    again: bool = False,
) -> dict[str, float]:
    """Return the median milliseconds that embedding one query takes on this machine.

    What was measured before on the same device, with as many threads and the same version of
    the runtime, is read from a file in the user's cache folder (`$XDG_CACHE_HOME/matvit`, else
    `~/.cache/matvit`). That file is only a memory: it may be deleted, and where it cannot be
    written the next call measures again.

    Other work on the machine only ever makes things slower. So where milliseconds contradict the
    order of compute (see `disorder`) all are measured again, and the least counts: now up to three
    times, and once more at a later call.

    Args:
        encoder: The encoder, on the device where it answers.
        submodels: What to time. If one is missing all are timed, in turns: what was measured at
            different times cannot be compared.
        progress: Show a progress bar on stderr.
        again: Measure anew what is known.

    Returns:
        Milliseconds by the submodel as text, from decoded pixels to the vector.
    """
    key = _conditions(encoder)
    path = _cache_file(key)
    known = {} if again else _read(path, key)
    wanted = list(dict.fromkeys(map(encoder.submodel, submodels)))
    found = {str(each): known[str(each)] for each in wanted if str(each) in known}
    rounds = _ROUNDS if len(found) < len(wanted) else 1
    if rounds > 1:
        found = {}
    elif _is_new(path) or not _disorder(_macs(encoder, wanted), found):
        return found
    for _ in range(rounds):
        speeds = measure_speed(
            encoder,
            wanted,
            _picture(encoder),
            latency_queries=_TIMES,
            batches=0,
            progress=progress,
        )
        for each, speed in zip(map(str, wanted), speeds, strict=True):
            found[each] = min(speed.latency_ms_p50, found.get(each, math.inf))
        if not _disorder(_macs(encoder, wanted), found):
            break
    _write(path, key, {**_read(path, key), **found})
    return found


def disorder(points: Iterable[OperatingPoint]) -> str | None:
    """Say which milliseconds of points cannot be right: far more of them for less compute.

    Returns:
        The worst contradiction as people read it; None if there is none.
    """
    known = [(each, each.latency_ms_p50) for each in points]
    took = {each.submodel: ms for each, ms in known if ms is not None}
    return _disorder({each.submodel: each.macs for each, ms in known if ms is not None}, took)


def timed(
    encoder: Encoder,
    points: Iterable[OperatingPoint],
    *,
    progress: bool = False,
    again: bool = False,
) -> list[OperatingPoint]:
    """Return the same points with the milliseconds that they take on this machine."""
    kept = list(points)
    names = [point.submodel for point in kept]
    here = measured_ms(encoder, names, progress=progress, again=again)
    return [
        replace(point, latency_ms_p50=here[point.submodel], latency_ms_p95=None) for point in kept
    ]


def describe_precision(encoder: Encoder) -> str:
    """Name the format of matrix products; single images may have one of their own."""
    many, one = (encoder.number_format("auto", count) for count in (None, 1))
    return many if many == one else f"{many}, single images {one}"


def _time_in_turns(
    work: Callable[[Submodel, int], None],
    submodels: Sequence[Submodel],
    turns: int,
    advance: Callable[[int], object],
) -> Float64[ndarray, "turns submodels"]:
    """Time `work` once per turn and submodel, in seconds."""
    for submodel in submodels if turns else ():
        work(submodel, 0)  # the first call allocates memory, selects kernels and fills caches
    seconds = np.empty((turns, len(submodels)))
    for turn in range(turns):
        for place in range(len(submodels)):
            column = (turn + place) % len(submodels)  # so that none always follows the same one
            start = perf_counter()
            work(submodels[column], turn)
            seconds[turn, column] = perf_counter() - start
            advance(1)
    return seconds


def _disorder(macs: Mapping[str, int], took: Mapping[str, float]) -> str | None:
    """Compare every submodel with the quickest of those that cost no less."""
    worst, said = _DISORDER, None
    fastest: dict[bool, str] = {}  # in 8 bits, and not: as much compute takes half the time there
    for name in sorted(macs, key=lambda each: (-macs[each], took[each])):
        quickest = fastest.setdefault(is_int8(name), name)
        if took[name] < took[quickest]:
            fastest[is_int8(name)] = name
        elif took[name] > worst * took[quickest]:
            worst = took[name] / took[quickest]
            said = (
                f"{name} took {took[name]:.3g} ms and {quickest}, which costs no less, "
                f"{took[quickest]:.3g} ms, so the machine was busy"
            )
    return said


def _macs(encoder: Encoder, submodels: Iterable[Submodel]) -> dict[str, int]:
    return {str(each): count_macs(encoder.config, each) for each in submodels}


def _is_new(path: Path | None) -> bool:
    """Whether something was measured a moment ago, when the machine was as busy as it is now."""
    with suppress(OSError):
        return path is not None and abs(time() - path.stat().st_mtime) < _TRUSTED_S
    return False


def _picture(encoder: Encoder) -> UInt8[ndarray, "images height width 3"]:
    """One picture of noise: what is in it makes no difference to how long it takes."""
    side = encoder.preprocess.img_size
    return np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)


def _conditions(encoder: Encoder) -> dict[str, str]:
    """Everything that a latency depends on, besides the submodel."""
    return {
        "encoder": encoder.name,
        "weights": encoder.weights_fingerprint,
        "device": encoder.runtime.place,
        "processor": _processor(),
        "cpus": str(os.cpu_count()),
        "precision": encoder.number_format("auto", 1),
        encoder.runtime.library: encoder.runtime.version,
    }


def _processor() -> str:
    """Model of the processor, such as `AMD EPYC`; a home folder may be shared by several."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {models[0] if models else platform.processor()}".strip()


def _cache_file(key: dict[str, str]) -> Path | None:
    """Where latencies are kept; None for a user without a home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    text = json.dumps(key, sort_keys=True)
    return root / "matvit" / f"latency-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    """Milliseconds by submodel, and all else that they depend on."""

    conditions: dict[str, str]
    milliseconds: dict[str, Annotated[float, msgspec.Meta(gt=0)]]


def _read(path: Path | None, key: dict[str, str]) -> dict[str, float]:
    """Read what is known; nothing if there is no file or it is not what was written."""
    with suppress(OSError, ValueError):
        found = None if path is None else read_json(path, _Memory, "a memory of latencies")
        if found is not None and found.conditions == key:
            return found.milliseconds
    return {}


def _write(path: Path | None, key: dict[str, str], known: dict[str, float]) -> None:
    """Remember, if there is a place to."""
    if path is None:
        return
    data = msgspec.json.format(msgspec.json.encode(_Memory(key, known)), indent=2)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda stream: stream.write(data))
