"""Encoders that ONNX Runtime runs, on a CPU and without torch."""

from __future__ import annotations

import ctypes
import os
import platform
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple
from weakref import WeakSet

import numpy as np
import onnxruntime
from cachetools import LRUCache
from jaxtyping import Float32, UInt8
from msgspec.structs import replace
from numpy import ndarray
from onnx import ModelProto

from matvit.checkpoint import ANCHOR, WEIGHTS, Settings, Tensors
from matvit.cost import count_params, resolve_submodel
from matvit.encoder import Memory, Precision, Runtime
from matvit.identity import without_head
from matvit.onnx_graph import OPSET, build_graph
from matvit.submodel import Granularity, Submodel

_TOGETHER = 8  # images; the hidden states of more do not stay in the caches of a processor
_KEPT = 8  # times the weights of the full size; what was not used for longest goes first
_ALWAYS_KEPT = 1 << 31  # bytes: as many sizes of a small encoder as are timed in turns

Weights = tuple[str, bool]
"""File that a submodel's weights are in, and whether they are rounded to 8 bits."""

_Blocks = tuple[tuple[int, int], ...]


class _States(NamedTuple):
    """Hidden states, or vectors; see `matvit.merging.Tokens`."""

    x: Float32[ndarray, "images ..."]
    sizes: Float32[ndarray, "images tokens"] | None = None


class OnnxEncoder:
    """An encoder that ONNX Runtime runs: any of its submodels, in float32 or in 8 bits.

    A submodel that runs alone is a graph of its own. Submodels that run together, or go on from
    each other, are put together of pieces, one for each width of each block, so that what they
    share runs once. Graphs are made when they are first needed. Threads can use one encoder.

    Args:
        settings: What the checkpoint says of it.
        files: Tensors of each of its files.
        threads: To compute with; see `load_encoder`.
    """

    def __init__(
        self, settings: Settings, files: Mapping[str, Tensors], *, threads: int | None = None
    ) -> None:
        self.name, self.config, self.preprocess = settings.name, settings.model, settings.preprocess
        self.fingerprint, self.weights_fingerprint = settings.fingerprint, settings.weights
        self._cut: Submodel | None = None
        if settings.submodel is not None:
            self._cut = resolve_submodel(self.config, settings.submodel)
        self._one_size = replace(self.config, dynamic_img_size=False)  # a graph has one
        self.is_whole = self._cut is None
        self._files = {name: without_head(tensors) for name, tensors in files.items()}
        self._threads = threads or _cpus()
        weights = 4 * count_params(self.config, self.submodel())
        self._sessions: LRUCache[object, _Session] = LRUCache(
            max(_KEPT * weights, _ALWAYS_KEPT),
            getsizeof=lambda session: session.size,
        )
        self._lock = Lock()

    @property
    def runtime(self) -> Runtime:
        """ONNX Runtime and its threads."""
        return Runtime(
            "onnxruntime", onnxruntime.__version__, "cpu", f"cpu, {self._threads} threads"
        )

    def submodel(self, spec: Submodel | Granularity | str | None = None) -> Submodel:
        """Resolve what a caller wrote; None is the largest size this encoder has.

        Raises:
            ValueError: If it cannot be read, or is none of the encoder's.
        """
        return resolve_submodel(self.config, spec, self._cut, has_int8=True)

    def weights_of(self, submodel: Submodel) -> Weights:
        """Name the weights that a submodel runs from."""
        anchored = submodel.is_wide and ANCHOR in self._files
        return ANCHOR if anchored else WEIGHTS, submodel.int8

    def number_format(self, precision: Precision = "auto", images: int | None = None) -> str:  # noqa: ARG002
        """Say float32: 8 bits are a submodel's own affair.

        Raises:
            ValueError: If another precision is asked for.
        """
        if precision not in ("auto", "float32"):
            raise ValueError(f"ONNX Runtime computes in float32, got precision {precision!r}")
        return "float32"

    def embed_pixels(
        self,
        pixels: UInt8[ndarray, "batch height width 3"],
        submodels: list[Submodel],
        number_format: str,  # noqa: ARG002 -- there is one
        memory: Memory | None = None,
    ) -> Float32[ndarray, "submodels batch dim"]:
        """Embed a batch with some submodels; see `matvit.encoder.Encoder`.

        Raises:
            ValueError: If the images are not of the encoder's size.
        """
        self._one_size.check_size(*pixels.shape[1:3])
        if memory is not None:
            return self._run(pixels, submodels, memory)
        vectors = np.empty((len(submodels), len(pixels), self.config.embed_dim), dtype=np.float32)
        for start in range(0, len(pixels), _TOGETHER):
            rows = slice(start, start + _TOGETHER)
            if len(submodels) == 1:
                whole = self._session(
                    self.weights_of(submodels[0]), self._blocks(submodels[0]), None
                )
                (vectors[0, rows],) = whole.run(pixels[rows])
            else:
                vectors[:, rows] = self._run(pixels[rows], submodels, None)
        return vectors

    def graph(self, submodel: Submodel, *, opset: int = OPSET, portable: bool = True) -> ModelProto:
        """Write down a whole submodel; `portable` for any processor, in 8 bits at least."""
        return self._build(
            self.weights_of(submodel), self._blocks(submodel), None, 0, opset, portable
        )

    def _run(
        self,
        pixels: UInt8[ndarray, "batch height width 3"],
        submodels: list[Submodel],
        memory: Memory | None,
    ) -> Float32[ndarray, "submodels batch dim"]:
        """Do what `matvit.nested.run` does, piece by piece; last come the vectors."""
        states: Memory = defaultdict(dict) if memory is None else memory
        wanted = [(self.weights_of(each), self._blocks(each)) for each in submodels]
        for weights in {weights for weights, _ in wanted}:
            if () not in states[weights]:
                states[weights][()] = _States(*self._session(weights, (), None).run(pixels))
        for depth in range(1, self.config.depth + 1):
            new: Memory = defaultdict(dict)
            for weights, made_by in {(weights, blocks[:depth]) for weights, blocks in wanted}:
                if (state := states[weights].get(made_by)) is None:
                    before = made_by[:-1]
                    gone = sum(merged for merged, _ in before)
                    piece = self._session(weights, made_by[-1:], depth - 1, gone)
                    state = _States(*piece.run(*states[weights][before]))
                new[weights][made_by] = state
            if memory is None:
                states = new  # no state is kept longer than the next block needs it
            for key, made in new.items():
                states[key].update(made)
        return np.stack([states[weights][blocks].x for weights, blocks in wanted])

    def _blocks(self, submodel: Submodel) -> _Blocks:
        return submodel.blocks(self.config.patches())

    def _session(
        self, weights: Weights, blocks: _Blocks, first: int | None, gone: int = 0
    ) -> _Session:
        key = (weights, blocks, first, gone)
        with self._lock:
            if key not in self._sessions:
                build = self._build(weights, blocks, first, gone, OPSET, portable=False)
                graph = build.SerializeToString()
                del build  # as large again
                # Many pieces have many pools of threads, that must not spin while others work.
                whole = first is None and len(blocks) == self.config.depth
                self._sessions[key] = _Session(graph, self._threads, spins=whole)
            return self._sessions[key]

    def _build(
        self,
        weights: Weights,
        blocks: _Blocks,
        first: int | None,
        gone: int,
        opset: int,
        portable: bool,
    ) -> ModelProto:
        file, int8 = weights
        limit = (63 if portable or not _adds_in_32_bits() else 127) if int8 else None
        return build_graph(
            self.config, self.preprocess, self._files[file], blocks,
            first=first, gone=gone, int8_limit=limit, opset=opset,
        )  # fmt: skip


_encoders: WeakSet[OnnxEncoder] = WeakSet()


def _forget_threads() -> None:
    """Let a forked process make sessions of its own: it has no threads of those there were.

    Those are never freed, which would wait for their threads.
    """
    for encoder in _encoders:
        for session in encoder._sessions.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        encoder._sessions.clear()
        encoder._lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


class _Session:
    """A graph, ready to run."""

    def __init__(self, graph: bytes, threads: int, *, spins: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # they keep what they had
        if not spins:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.size = len(graph)
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [each.name for each in self._session.get_inputs()]

    def run(self, *values: ndarray | None) -> list[Float32[ndarray, "..."]]:
        given = [value for value in values if value is not None]
        return list(self._session.run(None, dict(zip(self._inputs, given, strict=True))))


def _cpus() -> int:
    """Threads that the environment asks for, else CPUs that this process may use."""
    if (asked := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]).isdecimal():
        return max(1, int(asked))
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _adds_in_32_bits() -> bool:
    """Whether products of 8-bit numbers cannot overflow while they are added up.

    On x86 without VNNI instructions two of them are added in 16 bits, which saturates.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return True
    info = Path("/proc/cpuinfo")
    return info.exists() and "vnni" in info.read_text(encoding="utf-8")
