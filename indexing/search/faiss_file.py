"""FAISS files: written, and read though they may come from somebody else.

FAISS believes a file: some kinds make it open further files, and sizes are taken as they come. So
the structure of a file is walked here first, from its first byte to its last, and only the few
structures that this program writes are let through.
"""

from __future__ import annotations

import errno
import os
import struct
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from indexing.search.kinds import Kind, split
from indexing.store.files import StoredFile, check_hash, damaged
from matvit import open_regular

# FAISS tells what the system refused in words only.
_OF_MACHINE = (
    "bad_alloc",
    *map(os.strerror, (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)),
)
_INNER_PRODUCT = 0
_MAX_DIM = 1 << 16
_LISTS = {"Flat": b"IwFl", "SQ": b"IwSq", "PQ": b"IwPQ", "RaBitQ": b"Iwrq"}
_ROTATIONS = {"OPQ": b"LTra", "RR": b"rrot"}


def write_faiss(faiss_index: faiss.Index, stream: BinaryIO) -> None:
    """Write a FAISS index to a stream."""
    writer = faiss.PyCallbackIOWriter(stream.write)  # type: ignore[attr-defined]
    faiss.write_index(faiss_index, writer)


def read_structure(
    folder: Path, file: StoredFile, kind: Kind, dim: int, *, mmap: bool
) -> faiss.Index:
    """Read a FAISS file after its hash and layout were checked, and check what came of it.

    Args:
        folder: The index folder.
        file: What the manifest says about it.
        kind: What it holds; its factory string is one that `accepts_factory`.
        dim: Of the vectors.
        mmap: Leave the lists on disk.

    Raises:
        ValueError: If the file is damaged or holds something else.
    """
    check_hash(folder, file)
    path = folder / file.name
    check_layout(path, kind)
    flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY if mmap else 0
    try:
        index = faiss.read_index(str(path), flags)  # owns what `split` returns
    except RuntimeError as error:
        if any(sign in str(error) for sign in _OF_MACHINE):
            raise OSError(f"FAISS cannot read {path}: {' '.join(str(error).split())}") from error
        raise damaged(path, "FAISS cannot read it") from error
    _, inner = split(index)
    if {index.ntotal, inner.ntotal} != {file.rows}:
        raise damaged(path, f"it holds {inner.ntotal} vectors, not {file.rows}")
    if index.d != dim:
        raise damaged(path, f"its vectors have dimension {index.d}, not {dim}")
    if reason := _defect(index, inner):
        raise damaged(path, reason)
    return index


def held_ids(index: faiss.Index) -> Int64[ndarray, " images"]:
    """Ids of all vectors in a structure: as they were added if it keeps the order, or sorted."""
    _, inner = split(index)
    if isinstance(index, faiss.IndexIDMap):
        return np.array(faiss.vector_to_array(index.id_map), dtype=np.int64)
    lists = inner.invlists
    stored = [
        faiss.rev_swig_ptr(lists.get_ids(number), size)
        for number in range(inner.nlist)
        if (size := lists.list_size(number))
    ]
    return np.sort(np.concatenate(stored))


def _defect(
    index: faiss.Index,
    inner: Any,  # noqa: ANN401 -- the stubs of FAISS lack its members
) -> str | None:
    """Say what is wrong inside: FAISS does not look."""
    if isinstance(index, faiss.IndexIDMap):
        # FAISS itself checks that the links of a graph stay inside it.
        return None if index.id_map.size() == index.ntotal else "its ids are not one per vector"
    lists, quantizer = inner.invlists, inner.quantizer
    if lists.code_size != inner.code_size or (quantizer.ntotal, quantizer.d) != (
        inner.nlist,
        inner.d,
    ):
        return "its lists do not fit together"
    if sum(lists.list_size(number) for number in range(inner.nlist)) != inner.ntotal:
        return "its lists do not hold as many vectors as it says"
    return None


def check_layout(path: Path, kind: Kind) -> None:
    """Refuse a FAISS file that does not hold a structure of a kind and nothing else.

    Raises:
        ValueError: If it does not; the message says what is wrong.
    """
    with open_regular(path) as file, BufferedReader(file) as stream:
        walk = _Walk(stream, path.stat().st_size)
        try:
            walk.index((b"IxMp", b"IxPT", *_LISTS.values()))
            if walk.left:
                raise ValueError(f"{walk.left:,} bytes follow its end")
            if walk.codes != (wanted := _codes(kind)):
                raise ValueError(f"it holds a structure {walk.codes}, but {kind.name} is {wanted}")
        except ValueError as error:
            raise damaged(path, str(error)) from error


def _codes(kind: Kind) -> list[bytes]:
    """What a file of a kind consists of, in the order in which it is written."""
    first, last = kind.factory.split(",")[0], kind.factory.split(",")[-1]
    if kind.is_ivf:
        rotated = [code for name, code in _ROTATIONS.items() if first.startswith(name)]
        lists = next(code for name, code in _LISTS.items() if last.startswith(name))
        return [*([b"IxPT", *rotated] if rotated else []), lists, b"IxFI"]
    coded = last.startswith("SQ")
    graph = [b"IHNs" if coded else b"IHNf"] if first.startswith("HNSW") else []
    return [b"IxMp", *graph, b"IxSQ" if coded else b"IxFI"]


class _Walk:
    """Walks a file forward; whatever it has not understood, it has not passed.

    Attributes:
        left: Bytes from here to the end.
        codes: Types of the structures that were passed.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self.left = size
        self.codes: list[bytes] = []

    def index(self, allowed: tuple[bytes, ...]) -> None:
        """Walk an index, of one of the types that are allowed here."""
        code = self._code()
        if code not in allowed:
            raise ValueError(f"it holds a structure {code!r} that this program does not write")
        self.codes.append(code)
        self._header()
        if code in _LISTS.values():
            self._ivf(code)
        elif code == b"IxMp":
            self.index((b"IxFI", b"IxSQ", b"IHNf", b"IHNs"))
            self._vector(8)
        elif code == b"IxPT":
            self._rotation()
            self.index(tuple(_LISTS.values()))
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
        code = self._code()
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
        code = self._code()
        if code not in _ROTATIONS.values():
            raise ValueError(f"it has a transform {code!r}, not a rotation")
        self.codes.append(code)
        (biased,) = self._values("?")
        self._vector(4)
        if self._vector(4) or biased:
            raise ValueError("its rotation also shifts, which changes cosines")
        self._values("ii?")

    def _scalar_quantizer(self) -> None:
        self._values("iifQQ")
        self._vector(4)

    def _code(self) -> bytes:
        code = self._stream.read(4)
        self.left -= len(code)
        return code

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
