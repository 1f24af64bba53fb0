"""What is in a FAISS file, found out before FAISS sees it.

FAISS believes a file: some kinds make it open further files, and sizes are taken as they come. So
the structure of a file is walked here first, from its first byte to its last, and only the few
structures that this program writes are let through.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from indexing.storage import damaged

_INNER_PRODUCT = 0
_MAX_DIM = 1 << 16
_LISTS = (b"IwFl", b"IwSq", b"IwPQ", b"Iwrq")
_ROTATIONS = (b"LTra", b"rrot")


def check_layout(path: Path) -> None:
    """Refuse a FAISS file that does not hold one of our structures and nothing else.

    Raises:
        ValueError: If it does not; the message says what is wrong.
    """
    with path.open("rb") as stream:
        walk = _Walk(stream, path.stat().st_size)
        try:
            walk.index((b"IxMp", b"IxPT", *_LISTS))
            if walk.left:
                raise ValueError(f"{walk.left:,} bytes follow its end")
        except ValueError as error:
            raise damaged(path, str(error)) from error


class _Walk:
    """Walks a file forward; whatever it has not understood, it has not passed.

    Attributes:
        left: Bytes from here to the end.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self.left = size

    def index(self, allowed: tuple[bytes, ...]) -> None:
        """Walk an index, of one of the types that are allowed here."""
        code = self._stream.read(4)
        self.left -= len(code)
        if code not in allowed:
            raise ValueError(f"it holds a structure {code!r} that this program does not write")
        self._header()
        if code in _LISTS:
            self._ivf(code)
        elif code == b"IxMp":
            self.index((b"IxFI", b"IxSQ", b"IHNf", b"IHNs"))
            self._vector(8)
        elif code == b"IxPT":
            self._rotation()
            self.index(_LISTS)
        elif code == b"IxFI":
            self._vector(4)
        elif code == b"IxSQ":
            self._scalar_quantizer()
            self._vector(1)
        else:
            self._graph()

    def _header(self) -> None:
        dim, _, _, _, _, metric = self._values("iqqq?i")
        if not 1 <= dim <= _MAX_DIM or metric != _INNER_PRODUCT:
            raise ValueError(f"it has dimension {dim} and metric {metric}, not inner product")

    def _ivf(self, code: bytes) -> None:
        lists, _ = self._values("QQ")
        self.index((b"IxFI",))
        if self._values("b") != (0,) or self._vector(8):
            raise ValueError("it has a map of its own from ids to lists")
        if code == b"IwSq":
            self._scalar_quantizer()
            self._values("Q?")
        elif code == b"IwPQ":
            self._values("?QQQQ")
            self._vector(4)
        elif code == b"Iwrq":
            self._values("QQiQ?B")
        self._inverted_lists(lists)

    def _inverted_lists(self, lists: int) -> None:
        """Walk lists that are in this very file (`ilar`), rather than in one it names."""
        code = self._stream.read(4)
        self.left -= len(code)
        if code != b"ilar":
            raise ValueError(f"its lists are of type {code!r}, not in the file itself")
        found, code_size, form = self._values("QQ4s")
        if found != lists or form not in (b"full", b"sprs"):
            raise ValueError(f"it has {found} lists of form {form!r}, not {lists}")
        (count,) = self._values("Q")
        if (count != lists and form == b"full") or count > 2 * lists:
            raise ValueError(f"it has sizes of {count} lists, not {lists}")
        sizes = self._values(f"{self._fits(count, 8)}Q")
        vectors = sum(sizes if form == b"full" else sizes[1::2])
        self._skip(vectors, code_size + 8)

    def _graph(self) -> None:
        for item_bytes in (8, 4, 4, 8, 4):
            self._vector(item_bytes)
        self._values("5i")
        self.index((b"IxFI", b"IxSQ"))

    def _rotation(self) -> None:
        if self._values("i") != (1,):
            raise ValueError("it has more than one transform")
        code = self._stream.read(4)
        self.left -= len(code)
        if code not in _ROTATIONS:
            raise ValueError(f"it has a transform {code!r}, not a rotation")
        (biased,) = self._values("?")
        self._vector(4)
        if self._vector(4) or biased:
            raise ValueError("its rotation also shifts, which changes cosines")
        self._values("ii?")

    def _scalar_quantizer(self) -> None:
        self._values("iifQQ")
        self._vector(4)

    def _vector(self, item_bytes: int) -> int:
        (count,) = self._values("Q")
        self._skip(count, item_bytes)
        return int(count)

    def _skip(self, count: int, item_bytes: int) -> None:
        size = self._fits(count, item_bytes) * item_bytes
        self._stream.seek(size, 1)
        self.left -= size

    def _values(self, form: str) -> tuple[Any, ...]:
        wanted = struct.calcsize("<" + form)
        data = self._stream.read(self._fits(wanted, 1))
        self.left -= wanted
        return struct.unpack("<" + form, data)

    def _fits(self, count: int, item_bytes: int) -> int:
        if count * item_bytes > self.left:
            raise ValueError("it is cut off, or names a size larger than itself")
        return count
