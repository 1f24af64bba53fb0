"""Labelled images decoded once and kept in memory, for training at a fixed small size."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from matvit.data import NO_LABEL, ImageSet
from matvit.memory import available_memory
from matvit.preprocess import Preprocess
from matvit.training.pixel_cache import PixelCache

UNLABELLED = "unlabelled"
"""Name of the class that images have whose labels nobody asked for."""


@dataclass(frozen=True)
class LabelledPixels:
    """Decoded images and their classes.

    Attributes:
        pixels: uint8, shape (images, size, size, 3).
        labels: int64, shape (images,).
        class_names: Name of each class.
        skipped: Images left out because they could not be read or have no label.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: list[str]
    skipped: int

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, count: int) -> LabelledPixels:
        """At most `count` images, evenly spaced over the set."""
        return self.subset(_evenly_spaced(len(self), count))

    def subset(self, rows: NDArray[np.int64]) -> LabelledPixels:
        """Return some of the images."""
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows])

    def with_classes(self, class_names: list[str]) -> LabelledPixels:
        """Return the same images with classes numbered as in `class_names`.

        Raises:
            ValueError: If there is a class of another name.
        """
        if unknown := sorted(set(self.class_names) - set(class_names)):
            raise ValueError(f"classes {unknown[:3]} are not among the {len(class_names)} trained")
        number = np.array([class_names.index(name) for name in self.class_names])
        return replace(self, labels=number[self.labels], class_names=class_names)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with labels, classes and (a sample of) the pixels."""
        digest = hashlib.sha256(json.dumps([len(self), self.class_names]).encode())
        digest.update(self.labels.tobytes())
        digest.update(self.sample(1000).pixels.tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def load(
        cls,
        path: str | Path,
        preprocess: Preprocess,
        *,
        labels: bool = True,
        limit: int | None = None,
        cache: str | Path | None = None,
        workers: int | None = None,
        progress: bool = False,
    ) -> LabelledPixels:
        """Decode every labelled image of a folder, of Parquet files or of tar archives.

        Args:
            path: What `ImageSet.open` takes.
            preprocess: Decides the pixels; its `img_size` the room needed, 3 * size^2 bytes
                an image.
            labels: Without, every image is taken, and all are of one class of no meaning.
            limit: Decode at most this many, evenly spaced over all that there are.
            cache: Folder of a `PixelCache` that keeps them on disk for this and later runs; None
                keeps them in memory.
            workers: Threads that decode (Pillow releases the GIL); None is one per core.
            progress: Show a progress bar on stderr.

        Raises:
            FileNotFoundError: If nothing is at `path`.
            ValueError: If the images have no labels, none can be read, or they do not fit into
                memory.
            OSError: If they do not fit on the disk of the cache.
        """
        images = ImageSet.open(path)
        rows = _evenly_spaced(len(images), len(images) if limit is None else limit)
        number, names = images.labels, images.class_names
        if not labels:
            number, names = np.zeros(len(images), dtype=np.int64), [UNLABELLED]
        if number is None or names is None:
            raise ValueError(
                f"{path} has no labels; training needs a folder per class, or a 'label' column"
            )
        labelled = rows[number[rows] != NO_LABEL]
        decoded = tqdm(
            _decode_in_order(images, labelled, preprocess, workers or os.cpu_count() or 1),
            total=len(labelled), desc="decode", unit="img", disable=not progress,
        )  # fmt: skip
        if cache is not None:
            pixels, kept = PixelCache(cache).open(images, labelled, preprocess, decoded)
        else:
            pixels, kept = _in_memory(images, labelled, decoded, preprocess.img_size)
        return cls(pixels, number[kept], names, len(rows) - len(kept))


def _in_memory(
    images: ImageSet,
    rows: NDArray[np.int64],
    decoded: Iterable[NDArray[np.uint8] | None],
    size: int,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Put decoded images into one array; return it and the rows of those that were readable."""
    needed, available = len(rows) * 3 * size**2, available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"{len(rows):,} images of {size} px need {needed / 1e9:.1f} GB of memory, and "
            f"{available / 1e9:.1f} GB are available; keep them on disk with --cache DIR"
        )
    pixels = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    kept: list[int] = []
    for row, image in zip(rows, decoded, strict=True):
        if image is not None:
            pixels[len(kept)] = image
            kept.append(int(row))
    if not kept:
        raise ValueError(f"none of the {len(rows)} images in {images.root} can be read")
    return pixels[: len(kept)], np.array(kept, dtype=np.int64)


def _evenly_spaced(total: int, count: int) -> NDArray[np.int64]:
    return np.linspace(0, total - 1, min(count, total)).astype(np.int64)


def _decode_in_order(
    images: ImageSet, rows: NDArray[np.int64], preprocess: Preprocess, workers: int
) -> Iterator[NDArray[np.uint8] | None]:
    """Decode in threads (Pillow releases the GIL), a bounded number of images ahead."""

    def decode(data: bytes | OSError) -> NDArray[np.uint8] | None:
        try:
            return None if isinstance(data, OSError) else preprocess.pixels(data)
        except ValueError:
            return None

    pending: deque[Future[NDArray[np.uint8] | None]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for row in rows:
            (data,) = images.read_range(int(row), int(row) + 1)
            pending.append(pool.submit(decode, data))
            if len(pending) >= 64 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
