"""Decoded images on disk, for training sets that do not fit into memory.

Every epoch of training needs every image. Decoding a photograph costs a core a millisecond or
more each time; reading its decoded row from a memory map costs microseconds, and what fits of
the file stays in the page cache, which all processes of a machine share. The price is disk:
3 * size^2 bytes an image, 150 kB at 224 px.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from matvit.data import ImageSet
from matvit.preprocess import Preprocess

_PIXELS, _ROWS = "pixels.npy", "rows.npy"


class CachedPixels(NamedTuple):
    """Decoded images and where they come from.

    Attributes:
        pixels: uint8, shape (images, size, size, 3), mapped from the file and read on demand.
        rows: int64, shape (images,), the place of each image in its set, ascending.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]


class PixelCache:
    """A folder of decoded image sets, each made once and used by all later runs.

    A set is known by the names and times of its files and by the preprocessing: other images or
    another size are another entry. An entry appears whole or not at all, and of several
    processes that want it one decodes while the others wait.

    Args:
        folder: Where the entries are; created if missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def open(
        self,
        images: ImageSet,
        rows: NDArray[np.int64],
        preprocess: Preprocess,
        decoded: Iterable[NDArray[np.uint8] | None],
    ) -> CachedPixels:
        """Return the decoded images of a set, decoding them if nobody has yet.

        Args:
            images: The set.
            rows: Which images of it.
            preprocess: Decides the pixels.
            decoded: The decoded images in that order, None for unreadable ones; not asked for if
                the entry exists.

        Raises:
            ValueError: If not one image can be read.
            OSError: If the disk has no room for them.
        """
        entry = self.folder / _key(images, rows, preprocess)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            if not entry.exists():
                _check_room(self.folder, len(rows) * 3 * preprocess.img_size**2)
                _write(entry, images, rows, decoded, preprocess.img_size)
        return CachedPixels(np.load(entry / _PIXELS, mmap_mode="r"), np.load(entry / _ROWS))


def _key(images: ImageSet, rows: NDArray[np.int64], preprocess: Preprocess) -> str:
    """16 hex digits that change with names and times of the files, and with the preprocessing."""
    digest = hashlib.sha256(f"{preprocess.fingerprint} {len(rows)}".encode())
    for row in rows.tolist():
        digest.update(f"{row}\0{images.name(row)}\0{images.stat(row).mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the decoded images need {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB "
            "left; cache them on another disk or at a smaller size"
        )


def _write(
    entry: Path,
    images: ImageSet,
    rows: NDArray[np.int64],
    decoded: Iterable[NDArray[np.uint8] | None],
    size: int,
) -> None:
    """Write an entry beside its final place, then move it there.

    Through a file and not a memory map: a disk that fills up is then an error, not a signal
    that ends the process.
    """
    partial = entry.with_name(f".{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir()
    kept: list[int] = []
    with (partial / _PIXELS).open("wb") as file:
        start = _write_header(file, 0, size)
        for row, pixels in zip(rows, decoded, strict=True):
            if pixels is not None:
                file.write(pixels.tobytes())
                kept.append(int(row))
        file.seek(0)
        # NumPy pads its header so that the first axis can grow in place.
        assert _write_header(file, len(kept), size) == start
        file.flush()
        os.fsync(file.fileno())
    if not kept:
        shutil.rmtree(partial)
        raise ValueError(f"none of the {len(rows)} images in {images.root} can be read")
    np.save(partial / _ROWS, np.array(kept, dtype=np.int64))
    partial.replace(entry)


def _write_header(file: BinaryIO, images: int, size: int) -> int:
    """Write the header of a .npy file of uint8 images; return where the pixels begin."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (images, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()
