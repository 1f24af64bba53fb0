"""Reading a FAISS file that may come from somebody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from indexing.kinds.kind import split
from indexing.kinds.layout import check_layout
from indexing.manifest import StoredFile
from indexing.storage import check_hash, damaged


def read_structure(folder: Path, file: StoredFile, dim: int, *, mmap: bool) -> faiss.Index:
    """Read a FAISS file after its hash and layout were checked, and check what came of it.

    Args:
        folder: The index folder.
        file: What the manifest says about it.
        dim: Of the vectors.
        mmap: Leave the lists on disk.

    Raises:
        ValueError: If the file is damaged or holds something else.
    """
    check_hash(folder, file)
    path = folder / file.name
    check_layout(path)
    flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY if mmap else 0
    try:
        index = faiss.read_index(str(path), flags)  # owns what `split` returns
    except RuntimeError as error:
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
