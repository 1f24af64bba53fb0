"""The queries that submodels are chosen by: some to select with, others to bound and to report."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray
from PIL import Image

from indexing import Corpus, ImageRecord, IndexedImages
from matvit import Preprocess, is_exhaustion
from retrieval.ground_truth import GroundTruth, Wanted
from retrieval.retriever import Retriever

FEWEST = 40
"""Queries below which nothing can be said."""
_FEWEST_JUDGED = 8
_LARGEST_CROP = 0.06
_BRIGHTNESS = 0.05
_DECODED_TOGETHER = 64


class TooFewQueriesError(ValueError):
    """There are too few different images to tune with."""


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Decoded queries and what they should find.

    Attributes:
        pixels: uint8, shape (queries, height, width, 3).
        wanted: What is right, and which images of the index are the queries themselves.
    """

    pixels: UInt8[ndarray, "queries height width 3"]
    wanted: Wanted

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: Int64[ndarray, " rows"]) -> Queries:
        """Return some of the queries."""
        return Queries(
            pixels=self.pixels[rows], wanted=Wanted(*(table[rows] for table in self.wanted))
        )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Three sets of queries that share no image.

    Attributes:
        selecting: To choose submodels by.
        bounding: To set the thresholds of the per-query choice by, so that its loss is bounded.
        reporting: To say what the chosen ones are worth.
        altered: Whether they are altered images of the index itself.
        has_labels: Whether it is known what is relevant to enough of each.
        unreadable: Images that were drawn and could not be read.
    """

    selecting: Queries
    bounding: Queries
    reporting: Queries
    altered: bool
    has_labels: bool
    unreadable: int


def draw_sample(
    retriever: Retriever, queries: Corpus | None = None, *, size: int = 2000, seed: int = 0
) -> Sample:
    """Draw queries at random, decode them, and divide them into three.

    A quarter is to select by, half to set thresholds by, and a quarter to report on.

    Args:
        retriever: Encoder and index.
        queries: Images to draw from. None takes images of the index and alters them a little (a
            crop of at least 94 % of each side, brightness within 5 %); none of them then counts
            as its own hit.
        size: Queries in all. Fewer if there are not so many, and no file is drawn twice.
        seed: Of the draw and of the alterations.

    Raises:
        TooFewQueriesError: If fewer than 40 can be read.
        ValueError: If fewer are asked for.
    """
    if size < FEWEST:
        raise ValueError(f"tuning needs a sample of at least {FEWEST} queries, got {size}")
    rng = np.random.default_rng(seed)
    names = retriever.index.class_names if queries is None else queries.class_names
    truth = GroundTruth(retriever.index, names)
    preprocess = retriever.encoder.preprocess
    if queries is None:
        pixels, records, unreadable = _from_index(retriever.index, preprocess, size, rng)
    else:
        pixels, records, unreadable = _from_corpus(queries, preprocess, size, rng)
    if len(pixels) < FEWEST:
        source = "the index" if queries is None else str(queries.root)
        advice = "; name held-out images with --queries" if queries is None else ""
        raise TooFewQueriesError(
            f"tuning needs at least {FEWEST} different queries, but {source} has only "
            f"{len(pixels)} that can be read and are no copies ({unreadable} cannot be read)"
            f"{advice}"
        )
    drawn = Queries(pixels=pixels, wanted=truth.wanted(records))
    parts = np.split(rng.permutation(len(drawn)), [len(drawn) // 4, len(drawn) * 3 // 4])
    judged = [int((drawn.wanted.total[rows] > 0).sum()) for rows in parts]
    has_labels = truth.has_labels and min(judged) >= _FEWEST_JUDGED
    if not has_labels:  # too few labels tell less than none
        nothing = np.zeros_like(drawn.wanted.total)
        drawn = Queries(pixels=drawn.pixels, wanted=drawn.wanted._replace(total=nothing))
    selecting, bounding, reporting = (drawn.take(np.sort(rows)) for rows in parts)
    return Sample(
        selecting=selecting,
        bounding=bounding,
        reporting=reporting,
        altered=queries is None,
        has_labels=has_labels,
        unreadable=unreadable,
    )


def alter(
    pixels: UInt8[ndarray, "height width 3"], rng: np.random.Generator
) -> UInt8[ndarray, "height width 3"]:
    """Crop a little and change the brightness a little, as another photograph of it would."""
    height, width = pixels.shape[:2]
    kept = 1 - rng.uniform(0, _LARGEST_CROP)
    left, top = rng.uniform(0, 1 - kept, 2)
    box = (left * width, top * height, (left + kept) * width, (top + kept) * height)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box=box)
    gain = 1 + rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    return np.rint(np.asarray(image) * gain).clip(0, 255).astype(np.uint8)


_Drawn = tuple[UInt8[ndarray, "images height width 3"], list[ImageRecord], int]


def _from_corpus(
    corpus: Corpus, preprocess: Preprocess, size: int, rng: np.random.Generator
) -> _Drawn:
    """Decode images of a corpus in random order until there are enough."""
    order = rng.permutation(len(corpus))
    found: dict[str, tuple[ndarray, ImageRecord]] = {}
    unreadable = 0
    for start in range(0, len(order), size):
        part = corpus.subset(order[start : start + size])
        for batch in part.decode(preprocess):
            unreadable += len(batch.failures)
            for image, record in zip(batch.pixels, batch.records, strict=True):
                if len(found) < size:
                    found.setdefault(record.sha256, (image, record))
        if len(found) >= size:
            break
    return _stack(list(found.values()), preprocess, unreadable)


def _from_index(
    index: IndexedImages, preprocess: Preprocess, size: int, rng: np.random.Generator
) -> _Drawn:
    """Decode images of the index in random order until there are enough, and alter them."""
    order = rng.permutation(len(index))
    found: dict[str, tuple[ndarray, ImageRecord]] = {}
    unreadable = 0
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(order), _DECODED_TOGETHER):
            rows = order[start : start + _DECODED_TOGETHER]
            records = _records(index, rows)
            decoded = pool.map(lambda number: _decode(index, preprocess, number), index.ids[rows])
            for image, record in zip(decoded, records, strict=True):
                unreadable += image is None
                if image is not None and len(found) < size and record.sha256 not in found:
                    found[record.sha256] = alter(image, rng), record
            if len(found) >= size or unreadable > size:
                break
    return _stack(list(found.values()), preprocess, unreadable)


def _records(index: IndexedImages, rows: Int64[ndarray, " rows"]) -> list[ImageRecord]:
    names = list(ImageRecord.__dataclass_fields__)
    return [ImageRecord(**row) for row in index.metadata.take(rows).select(names).to_pylist()]


def _decode(
    index: IndexedImages, preprocess: Preprocess, number: int
) -> UInt8[ndarray, "height width 3"] | None:
    """Decode an original of the index; None if it is gone, has changed or cannot be read."""
    try:
        return preprocess.pixels(index.image_bytes(int(number)))
    except (OSError, ValueError) as error:
        if is_exhaustion(error):
            raise
        return None


def _stack(
    found: Sequence[tuple[ndarray, ImageRecord]], preprocess: Preprocess, unreadable: int
) -> _Drawn:
    side = preprocess.img_size
    empty = np.empty((0, side, side, 3), dtype=np.uint8)
    pixels = np.stack([image for image, _ in found]) if found else empty
    return pixels, [record for _, record in found], unreadable
