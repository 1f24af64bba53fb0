"""Labelled images decoded once and kept, in memory or on disk, for training at a fixed size.

Every epoch of training needs every image, and decoding a photograph costs a core a millisecond or
more each time. A set that does not fit into memory is kept on disk: reading a decoded row from a
memory map costs microseconds, and what fits of the file stays in the page cache, which all
processes of a machine share. The price is disk: 3 * size^2 bytes an image, 150 kB at 224 px.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from matvit.preprocess import Preprocess
from matvit.progress import progress_of
from matvit.writing import naming

UNLABELLED = "unlabelled"
"""Name of the class that images have whose labels nobody asked for."""

_PIXELS, _ROWS = "pixels.npy", "rows.npy"
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


class DecodedImages(Protocol):
    """A run of images, decoded."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Those that could be read, shape (rows, size, size, 3)."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Place of each of them among the images that were to be decoded, ascending."""

    @property
    def images(self) -> int:
        """How many the run has, those that could not be read included."""


class Images(Protocol):
    """What training needs of a set of images; a `Corpus` has it."""

    @property
    def root(self) -> Path:
        """Where they are."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class index per image, below 0 for none; None if there are no classes."""

    @property
    def class_names(self) -> list[str] | None:
        """What the class indices mean; None if there are no classes."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call an image."""

    def stamp(self, index: int) -> tuple[int, int]:
        """Size in bytes and time of change in nanoseconds of an image file."""

    def subset(self, indices: NDArray[np.int64]) -> Images:
        """Return the chosen images, in the order given."""

    def decode(self, preprocess: Preprocess) -> Iterator[DecodedImages]:
        """Decode all images in parallel and in order."""


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
        images: Images,
        preprocess: Preprocess,
        *,
        labels: bool = True,
        limit: int | None = None,
        cache: str | Path | None = None,
        progress: bool = False,
    ) -> LabelledPixels:
        """Decode every labelled image of a set.

        Args:
            images: The set, such as `Corpus.open("photos/")`.
            preprocess: Decides the pixels; its `img_size` the room needed, 3 * size^2 bytes
                an image.
            labels: Without, every image is taken, and all are of one class of no meaning.
            limit: Decode at most this many, evenly spaced over all that there are.
            cache: Folder that keeps them on disk for this and later runs, created if missing;
                None keeps them in memory.
            progress: Show a progress bar on stderr.

        Raises:
            ValueError: If the images have no labels, none can be read, or they do not fit into
                memory.
            OSError: If they do not fit on the disk of the cache.
        """
        rows = _evenly_spaced(len(images), len(images) if limit is None else limit)
        number, names = images.labels, images.class_names
        if not labels:
            number, names = np.zeros(len(images), dtype=np.int64), [UNLABELLED]
        if number is None or names is None:
            raise ValueError(
                f"{images.root} has no labels; training needs a folder per class, "
                "or a 'label' column"
            )
        labelled = rows[number[rows] >= 0]
        chosen = images.subset(labelled)
        if cache is None:
            pixels, kept = _in_memory(chosen, preprocess, progress=progress)
        else:
            pixels, kept = _on_disk(chosen, preprocess, Path(cache), progress=progress)
        return cls(pixels, number[labelled[kept]], names, len(rows) - len(kept))


class _Kept(NamedTuple):
    """Decoded images, and the place of each in its set, ascending."""

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]


def _evenly_spaced(total: int, count: int) -> NDArray[np.int64]:
    return np.linspace(0, total - 1, min(count, total)).astype(np.int64)


def _decoded(images: Images, preprocess: Preprocess, *, progress: bool) -> Iterator[DecodedImages]:
    """Decode a set run by run.

    Raises:
        ValueError: In the end, if not one image could be read.
    """
    read = 0
    with progress_of("decoding", len(images), unit="img", shown=progress) as bar:
        for run in images.decode(preprocess):
            yield run
            read += len(run.rows)
            bar.update(run.images)
    if not read:
        raise ValueError(f"none of the {len(images)} images in {images.root} can be read")


def _in_memory(images: Images, preprocess: Preprocess, *, progress: bool) -> _Kept:
    """Put decoded images into one array.

    Raises:
        ValueError: If it does not fit, or not one image can be read.
    """
    needed, available = _bytes_of(images, preprocess), available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"{len(images):,} images of {preprocess.img_size} px need {needed / 1e9:.1f} GB of "
            f"memory, and {available / 1e9:.1f} GB are available; "
            "keep them on disk with --cache DIR"
        )
    pixels = np.empty((len(images), *_shape(preprocess)), dtype=np.uint8)
    places: list[NDArray[np.int64]] = []
    filled = 0
    for run in _decoded(images, preprocess, progress=progress):
        pixels[filled : filled + len(run.rows)] = run.pixels
        filled += len(run.rows)
        places.append(run.rows)
    return _Kept(pixels[:filled], np.concatenate(places))


def _on_disk(images: Images, preprocess: Preprocess, folder: Path, *, progress: bool) -> _Kept:
    """Map decoded images from a file, which is made if nobody has made it yet.

    A set is known by the names and times of its files and by the preprocessing: other images or
    another size are another entry of the folder. An entry appears whole or not at all, and of
    several processes that want it one decodes while the others wait.

    Raises:
        ValueError: If not one image can be read.
        OSError: If the disk has no room for them.
    """
    entry = folder / _key(images, preprocess)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{entry}.lock"):
        if not entry.exists():
            _check_room(folder, _bytes_of(images, preprocess))
            _write_entry(entry, images, preprocess, progress=progress)
    return _Kept(np.load(entry / _PIXELS, mmap_mode="r"), np.load(entry / _ROWS))


def _key(images: Images, preprocess: Preprocess) -> str:
    """16 hex digits that change with names and times of the files, and with the preprocessing."""
    digest = hashlib.sha256(f"{preprocess.fingerprint} {len(images)}".encode())
    for row in range(len(images)):
        _, mtime_ns = images.stamp(row)
        digest.update(f"{row}\0{images.name(row)}\0{mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the decoded images need {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB "
            "left; cache them on another disk or at a smaller size"
        )


def _write_entry(entry: Path, images: Images, preprocess: Preprocess, *, progress: bool) -> None:
    """Write an entry beside its final place, then move it there.

    Through a file and not a memory map: a disk that fills up is then an error, not a signal
    that ends the process.
    """
    partial = entry.with_name(f".{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir()
    places: list[NDArray[np.int64]] = []
    try:
        with naming(entry), (partial / _PIXELS).open("wb") as file:
            start = _write_header(file, 0, preprocess)
            for run in _decoded(images, preprocess, progress=progress):
                file.write(run.pixels.tobytes())
                places.append(run.rows)
            file.seek(0)
            # NumPy pads its header so that the first axis can grow in place.
            assert _write_header(file, sum(map(len, places)), preprocess) == start
            file.flush()
            os.fsync(file.fileno())
        with naming(entry):
            np.save(partial / _ROWS, np.concatenate(places))
        partial.replace(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_header(file: BinaryIO, images: int, preprocess: Preprocess) -> int:
    """Write the header of a .npy file of uint8 images; return where the pixels begin."""
    shape = (images, *_shape(preprocess))
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _shape(preprocess: Preprocess) -> tuple[int, int, int]:
    return preprocess.img_size, preprocess.img_size, 3


def _bytes_of(images: Images, preprocess: Preprocess) -> int:
    return len(images) * 3 * preprocess.img_size**2


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, or None where the system does not say.

    A container's own limit counts if it is the smaller one.
    """
    known = [left for left in (_left_by_machine(), _left_by_container()) if left is not None]
    return min(known, default=None)


def _left_by_machine() -> int | None:
    lines = _MEMINFO.read_text(encoding="ascii").splitlines() if _MEMINFO.exists() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_by_container() -> int | None:
    """What the control group of this process (version 2) leaves it, page cache not counted."""
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    if limit == "max":
        return None
    counts = dict(line.split() for line in stat)
    return int(limit) - used + int(counts.get("inactive_file", 0))
