"""How long embedding takes, measured so that submodels can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8
from tqdm import tqdm

from matvit import Encoder, Submodel, embed

_BATCHES = 3


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
    pixels: UInt8[np.ndarray, "images height width 3"],
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
    with tqdm(total=turns, desc="timing", unit="run", disable=not progress) as bar:
        together = _time_in_turns(embed_all, submodels, batches, bar.update)
        alone = _time_in_turns(embed_one, submodels, latency_queries, bar.update)
    p50, p95 = 1000 * np.percentile(alone, [50, 95], axis=0)
    per_second = len(pixels) / np.median(together, axis=0) if batches else np.full(len(p50), np.nan)
    return [Speed(*map(float, row)) for row in zip(p50, p95, per_second, strict=True)]


def _time_in_turns(
    work: Callable[[Submodel, int], None],
    submodels: Sequence[Submodel],
    turns: int,
    advance: Callable[[int], object],
) -> Float64[np.ndarray, "turns submodels"]:
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
