"""What an index is, what is in it and what is not, as the page tells it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pandas as pd

from app.page.plain import plain
from indexing import Failure, ImageIndex

FAILURES_PER_PAGE = 20


def facts(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Describe an index in names and values.

    Args:
        info: What `ImageIndex.info` returns.
    """
    encoder, corpus, calibration = info["encoder"], info["corpus"], info["calibration"]
    told = [
        ("Index", info["path"]),
        ("Corpus", f"{corpus['root']} ({corpus['kind']}, {corpus['images']:,} images)"),
        ("Encoder", f"{encoder['name']}, {encoder['macs'] / 1e9:.3f} GMACs an image"),
        ("Fingerprint of the encoder", encoder["fingerprint"]),
        ("Embeddings", f"{encoder['dim']} numbers each"),
        ("Search", _search(info["kind"], info["factory"], calibration)),
        ("Generation", f"{info['generation']:,}"),
        ("On disk", size(info["bytes"])),
    ]
    if info["removed"]:
        told.append(("Removed, not yet compacted", f"{info['removed']:,} images"))
    if info["staged"]:
        told.append(("Stored by an unfinished addition", f"{info['staged']:,} images"))
    return told


def banner(info: dict[str, Any]) -> str:
    """Say in one sentence how many images are indexed by what, and how many failed."""
    encoder, failures = info["encoder"], info["failures"]
    text = (
        f"**{info['images']:,} images** embedded once at full size by "
        f"**{plain(encoder['name'])}**, "
        f"{encoder['macs'] / 1e9:.2f} GMACs an image. Ask with a smaller part of it."
    )
    if failures == 1:
        return f"{text} One image could not be read and is not in the index."
    if failures:
        return f"{text} {failures:,} images could not be read and are not in the index."
    return text


def size(count: int) -> str:
    """Write a number of bytes as people read it."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def failures_table(failures: Sequence[Failure], page: int) -> pd.DataFrame:
    """The failures of one page, from 1, as a table."""
    first = (page - 1) * FAILURES_PER_PAGE
    shown = failures[first : first + FAILURES_PER_PAGE]
    return pd.DataFrame(
        [(failure.path, failure.error, failure.message) for failure in shown],
        columns=["image", "error", "reason"],
    )


def pages(failures: Sequence[Failure]) -> int:
    """How many pages the failures fill."""
    return -(-len(failures) // FAILURES_PER_PAGE)


def sample(index: ImageIndex, count: int, seed: int) -> list[int]:
    """Ids of some images of the index, the same ones for the same seed."""
    chosen = random.Random(seed).sample(range(len(index)), min(count, len(index)))  # noqa: S311
    return [int(index.ids[row]) for row in chosen]


def _search(kind: str, factory: str | None, calibration: dict[str, Any] | None) -> str:
    exact = "exact" if calibration is None else "approximate, scores computed again exactly"
    return f"{kind}, {exact}" + (f" ({factory})" if factory and factory != kind else "")
