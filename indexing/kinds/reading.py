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


def read_structure(
    folder: Path, file: StoredFile, dim: int, ids: Int64[ndarray, " images"], *, mmap: bool
) -> faiss.Index:
    """Read a FAISS file after its hash and layout were checked, and check what came of it.

    Args:
        folder: The index folder.
        file: What the manifest says about it.
        dim: Of the vectors.
        ids: That must be in it, in this order where it keeps one.
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
    if {index.ntotal, inner.ntotal, len(ids)} != {file.rows}:
        raise damaged(path, f"it holds {inner.ntotal} vectors, not {file.rows}")
    if index.d != dim:
        raise damaged(path, f"its vectors have dimension {index.d}, not {dim}")
    if reason := _defect(index, inner, ids):
        raise damaged(path, reason)
    return index


def _defect(
    index: faiss.Index,
    inner: Any,  # noqa: ANN401 -- the stubs of FAISS lack its members
    ids: Int64[ndarray, " images"],
) -> str | None:
    """Say what is wrong inside: FAISS does not look."""
    if isinstance(index, faiss.IndexIDMap):
        if not np.array_equal(faiss.vector_to_array(index.id_map), ids):
            return "its ids are not those of the metadata"
        return None  # FAISS itself checks that the links of a graph stay inside it
    lists, quantizer = inner.invlists, inner.quantizer
    if lists.code_size != inner.code_size or (quantizer.ntotal, quantizer.d) != (
        inner.nlist,
        inner.d,
    ):
        return "its lists do not fit together"
    stored = [
        faiss.rev_swig_ptr(lists.get_ids(number), size)
        for number in range(inner.nlist)
        if (size := lists.list_size(number))
    ]
    if not np.array_equal(np.sort(np.concatenate(stored)), np.sort(ids)):
        return "its ids are not those of the metadata"
    return None
