"""Original images of an index, read back from the corpus they came from."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from msgspec.structs import replace

from indexing.corpus.corpus import Corpus
from indexing.corpus.selection import Selection
from indexing.corpus.source import Kind
from matvit import is_exhaustion, progress_of, read_file

_READERS = 8  # they wait for the disk more than they compute


class Originals:
    """Reads images from where the corpus was when it was indexed, and nothing else.

    An index may come from somebody else, so neither the root nor a path in it is trusted. A file
    is handed out only if it has the hash of the image that was indexed: whoever could name that
    hash already knows the file.

    Args:
        root: Where the images were.
        kind: What was found there.
        selection: What was taken of it.
    """

    def __init__(self, root: str, kind: Kind, selection: Selection = Selection()) -> None:
        self._root = Path(os.path.normpath(root))
        self._kind: Kind = kind
        self._selection = replace(selection, labels=False)

    def read(self, path: str, position: int, sha256: str) -> bytes:
        """Return the bytes of one image file.

        Args:
            path: Its name in the metadata.
            position: Its place in the corpus when it was indexed.
            sha256: What its bytes must hash to.

        Raises:
            FileNotFoundError: If the file or the corpus is gone.
            ValueError: If the path leads out of the corpus, or the image is not the indexed one.
        """
        if self._kind == "folder":
            data = read_file(self._inside(path)).data
        else:
            data = self._read_row(path, position)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(
                f"{path} in {self._root} has changed since it was indexed; build the index again"
            )
        return data

    def read_row(self, metadata: pa.Table, row: int) -> bytes:
        """Return the bytes of the image in a row of the metadata of its index; see `read`."""
        path, position, sha256 = (
            metadata.column(name)[row].as_py() for name in ("path", "position", "sha256")
        )
        return self.read(path, position, sha256)

    def file(self, path: str) -> Path:
        """Return the file of an image, as an absolute path.

        Raises:
            FileNotFoundError: If it is gone.
            ValueError: If it leads out of the corpus, or the images are in files of many.
        """
        if self._kind != "folder":
            raise ValueError(
                f"{path} has no file of its own: the images of {self._root} lie in "
                f"{'Parquet files' if self._kind == 'parquet' else 'tar archives'}; copy it out"
            )
        return self._inside(path).absolute()

    def _inside(self, path: str) -> Path:
        """Return the file `path` names below the root, with every `..` resolved in the name."""
        file = Path(os.path.normpath(self._root / path))
        if not file.is_relative_to(self._root):
            raise ValueError(f"the index names {path!r}, which is outside its corpus {self._root}")
        if not file.is_file():
            raise FileNotFoundError(
                f"{path} is no longer in {self._root}; put it back or build the index again"
            )
        return file

    def _read_row(self, path: str, position: int) -> bytes:
        corpus = self._corpus
        if position >= len(corpus) or corpus.name(position) != path:
            position = self._names.index(path).as_py()  # rows before it came or went
        if position < 0:
            raise FileNotFoundError(
                f"{path} is no longer in {self._root}; put it back or build the index again"
            )
        return corpus.read(position)

    @cached_property
    def _names(self) -> pa.Array:
        return self._corpus.names

    @cached_property
    def _corpus(self) -> Corpus:
        return Corpus.as_listed(self._root, self._kind, self._selection)


def complaints(
    check: Callable[[int], object], numbers: Sequence[int], *, doing: str, progress: bool
) -> Iterator[tuple[int, OSError | ValueError]]:
    """Check images on several threads, and yield the number and the error of each that fails.

    Args:
        check: Raises if something is wrong with the image of a number.
        numbers: Of the images.
        doing: What to call it, in one word.
        progress: Show a progress bar on stderr.

    Raises:
        OSError: If the machine is out of descriptors; MemoryError likewise.
    """
    pending: deque[tuple[int, Future[object]]] = deque()
    with (
        ThreadPoolExecutor(_READERS) as pool,
        progress_of(doing, len(numbers), unit="img", shown=progress) as bar,
    ):
        try:
            for at in range(len(numbers) + _READERS):
                if at < len(numbers):
                    pending.append((numbers[at], pool.submit(check, numbers[at])))
                if at < _READERS or not pending:
                    continue
                number, done = pending.popleft()
                try:
                    done.result()
                except (OSError, ValueError) as error:
                    if is_exhaustion(error):
                        raise
                    yield number, error
                bar.update()
        finally:
            for _, done in pending:
                done.cancel()
