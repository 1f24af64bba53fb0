"""FAISS on a GPU: one resource object, one lock, structures copied there and back.

A GPU index answers one thread at a time, cannot be saved, and takes about 1.5 GB of scratch for
each resource object. So there is one resource object for all, a lock around each use of it, and
what is stored is always the CPU's copy.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

if TYPE_CHECKING:
    import torch

LOCK = threading.RLock()
"""Held by whoever uses the GPU resources."""

MAX_FETCH = 2_048
"""FAISS's limit of k and nprobe on a GPU."""

_DEVICE = 0


class DoesNotFitError(ValueError):
    """A structure was too large for the memory that the GPU had left, or it failed there."""


def gpu_count() -> int:
    """GPUs that FAISS sees; the CPU build of FAISS has no such call."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def clone(index: faiss.Index) -> faiss.Index:
    """Copy a CPU index to the GPU; flat vectors and lookup tables become float16 there.

    Raises:
        DoesNotFitError: If FAISS cannot.
    """
    options = faiss.GpuClonerOptions()
    options.useFloat16 = True
    options.indicesOptions = faiss.INDICES_64_BIT  # type: ignore[attr-defined]
    with held():
        return faiss.index_cpu_to_gpu(_resources(), _DEVICE, index, options)


@contextmanager
def held() -> Iterator[None]:
    """Keep the GPU from other threads while something is put on it.

    Raises:
        DoesNotFitError: If FAISS fails; its own error has a stack of C++ in it.
    """
    with LOCK:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines() or ["no reason given"]
            raise DoesNotFitError(
                "the index cannot be put on the GPU, use device cpu or a smaller kind: "
                f"{reason[-1]:.200}"
            ) from error


def search(
    index: faiss.Index, queries: Float32[ndarray, "queries dim"] | torch.Tensor, fetch: int
) -> tuple[Float32[ndarray, "queries fetch"], Int64[ndarray, "queries fetch"]]:
    """Search a GPU index; a tensor on the GPU is read where it lies.

    `faiss.contrib.torch_utils` is not used: importing it takes the search parameters away from
    every index of the process, those on the CPU too.
    """
    with LOCK:
        if not isinstance(queries, ndarray):
            return _search_tensor(index, queries, fetch)
        scores = np.empty((len(queries), fetch), dtype=np.float32)
        labels = np.empty((len(queries), fetch), dtype=np.int64)
        asked, found, named = map(faiss.swig_ptr, (queries, scores, labels))
        index.search_c(len(queries), asked, fetch, found, named)  # type: ignore[attr-defined]
        return scores, labels


def _search_tensor(
    index: faiss.Index, queries: torch.Tensor, fetch: int
) -> tuple[Float32[ndarray, "queries fetch"], Int64[ndarray, "queries fetch"]]:
    queries = queries.contiguous()
    scores = queries.new_empty((len(queries), fetch))
    labels = scores.long()
    torch_cuda = sys.modules["torch.cuda"]  # whoever made the tensor has imported it
    torch_cuda.synchronize(queries.device)  # FAISS works on a stream of its own
    index.search_c(  # type: ignore[attr-defined]
        len(queries),
        faiss.cast_integer_to_float_ptr(queries.data_ptr()),
        fetch,
        faiss.cast_integer_to_float_ptr(scores.data_ptr()),
        faiss.cast_integer_to_idx_t_ptr(labels.data_ptr()),
    )
    _resources().getResources().syncDefaultStream(_DEVICE)
    return scores.cpu().numpy(), labels.cpu().numpy()


@cache
def _resources() -> Any:  # noqa: ANN401 -- the CPU build lacks the class
    return faiss.StandardGpuResources()
