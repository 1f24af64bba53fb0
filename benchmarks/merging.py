"""Two ways to merge tokens, and how long a query takes with them.

    python benchmarks/merging.py [--rounds 40] [--name merging]

The same tokens are merged by sorting and gathering rows, as the product does, and by one matrix
made of comparisons, without sort, gather or scatter. Both run in torch and in ONNX Runtime, in the
bundled encoder at 64 px and in a ViT-S/14 of random weights at 224 px. Beside S, which merges none,
stand schedules of one to three merges. All take turns, an image each, on one thread; counted is the
time that the processor works for the process, which other work on the machine stretches less than
the time on the wall.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import process_time
from typing import Any
from unittest import mock

import numpy as np
import torch
from onnx import TensorProto
from provenance import provenance, without_paths, write_result

from matvit import (
    DEFAULT_ENCODER,
    MatViT,
    MatViTConfig,
    count_macs,
    embed,
    load_encoder,
    onnx_graph,
)
from matvit.merging import Tokens

SCHEDULES = {
    "bundled, 64 px": ("S", "S~", "S~3x0,32,2x0", "S~2x0,2x16,8,0"),
    "ViT-S/14, 224 px": ("S", "S~", "S~6x0,128,5x0", "S~4x0,64,0,64,0,32,3x0"),
}
Run = Callable[[np.ndarray], np.ndarray]
Key = tuple[str, str, str]
"""Runtime, form and submodel."""


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--name", default="merging")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shape = MatViTConfig(img_size=224, patch_size=14, embed_dim=384, depth=12, num_heads=6)
        MatViT(shape, name="random").save(folder)
        rows = [
            row
            for (name, schedules), source in zip(
                SCHEDULES.items(), (DEFAULT_ENCODER, folder), strict=True
            )
            for row in measure(name, source, schedules, given.rounds)
        ]
    command = "python benchmarks/merging.py " + without_paths(sys.argv[1:])
    write_result(given.name, {**provenance(command), "rounds": given.rounds, "rows": rows})


def measure(
    name: str, source: str, schedules: tuple[str, ...], rounds: int
) -> list[dict[str, Any]]:
    """Time one encoder with every schedule, form and runtime, in turns."""
    runs: dict[Key, Run] = {}
    model = MatViT.load(source)
    for form in ("rows", "matrix"):
        encoder = load_encoder(source, runtime="onnx", threads=1)  # each keeps its own graphs
        for size in schedules:
            for runtime, each in (("onnx", encoder), ("torch", model)):
                runs[runtime, form, size] = partial(embed, each, submodel=size, precision="float32")
    side = model.config.img_size
    images = np.random.default_rng(0).integers(0, 256, (8, 1, side, side, 3), dtype=np.uint8)
    _check_alike(runs, images[0])
    took: dict[Key, list[float]] = {key: [] for key in runs}
    for turn in range(rounds):
        for key, run in runs.items():
            with _merging_by(key[1]):
                start = process_time()
                run(images[turn % len(images)])
                took[key].append(1000 * (process_time() - start))
    base = count_macs(model.config, model.submodel("S"))
    rows = []
    for (runtime, form, size), ms in took.items():
        whole = np.array(took[runtime, form, "S"])
        rows.append(
            {
                "encoder": name,
                "runtime": runtime,
                "form": form,
                "submodel": size,
                "macs_of_s": count_macs(model.config, model.submodel(size)) / base,
                "cpu_ms": float(np.median(ms)),
                "cpu_ms_fastest": min(ms),
                "cpu_ms_of_s": float(np.median(np.array(ms) / whole)),
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


@contextmanager
def _merging_by(form: str) -> Iterator[None]:
    """Have tokens merged in one of the two ways."""
    if form == "rows":
        yield
        return
    with (
        mock.patch("matvit.nested.merge", merge_by_matrix),
        mock.patch.object(onnx_graph, "_merge", add_merge_by_matrix),
    ):
        yield


def _check_alike(runs: dict[Key, Run], pixels: np.ndarray) -> None:
    """Make sure that all forms merge the same tokens; graphs are written here."""
    first: dict[str, np.ndarray] = {}
    for (_, form, size), run in runs.items():
        with _merging_by(form):
            np.testing.assert_allclose(run(pixels), first.setdefault(size, run(pixels)), atol=1e-5)


def merge_by_matrix(tokens: Tokens, count: int, prefix: int) -> Tokens:
    """Do what `matvit.merging.merge` does with one matrix of weights per image."""
    if not count:
        return tokens
    x, sizes = tokens
    length = x.shape[1]
    directions = torch.nn.functional.normalize(x[:, prefix:], dim=-1)
    likeness, partner = (directions[:, ::2] @ directions[:, 1::2].mT).max(dim=-1)
    places = torch.arange(length)
    firsts = places[prefix::2]
    mine, theirs = likeness[:, :, None], likeness[:, None, :]
    is_ahead = (theirs > mine) | ((theirs == mine) & (firsts[None, :] < firsts[:, None]))
    goes = is_ahead.sum(dim=2) < count
    target = places.repeat(len(x), 1)
    target[:, prefix::2] = torch.where(goes, 2 * partner + 1 + prefix, firsts)
    stays = target == places
    row = (stays.cumsum(dim=1) - 1).gather(1, target)
    weights = (row[:, None, :] == places[: length - count, None]).to(x.dtype)
    if sizes is not None:
        weights = weights * sizes[:, None, :]
    counts = weights.sum(dim=2)
    return Tokens((weights @ x) / counts[:, :, None], counts)


def add_merge_by_matrix(
    graph: onnx_graph._Graph,
    config: MatViTConfig,
    gone: int,
    count: int,
    tokens: onnx_graph._Tokens,
) -> onnx_graph._Tokens:
    """Do the same in a graph."""
    prefix, length = config.prefix_tokens, config.tokens() - gone
    firsts = np.arange(prefix, length, 2)
    axis, last = graph.constant([1]), graph.constant([2])
    x = graph.slice(tokens.x, prefix)
    norm = graph.reduce("ReduceL2", x, axis=-1, keepdims=1)
    x = graph.add("Div", x, graph.add("Max", norm, graph.constant(1e-12)))
    others = graph.add("Transpose", graph.slice(x, 1, 2), perm=[0, 2, 1])
    scores = graph.add("MatMul", graph.slice(x, 0, 2), others)
    partner = graph.add("ArgMax", scores, axis=-1, keepdims=0)
    likeness = graph.reduce("ReduceMax", scores, axis=-1, keepdims=0)
    mine, theirs = (graph.add("Unsqueeze", likeness, each) for each in (last, axis))
    before = graph.constant(firsts[None, :] < firsts[:, None])
    tied = graph.add("And", graph.add("Equal", theirs, mine), before)
    ahead = graph.add("Or", graph.add("Greater", theirs, mine), tied)
    rank = graph.add("ReduceSum", _float(graph, ahead), last, keepdims=0)
    goes = graph.add("Less", rank, graph.constant(float(count)))
    into = graph.add("Add", graph.add("Mul", partner, graph.whole(2)), graph.whole(prefix + 1))
    spread = np.zeros((len(firsts), length), dtype=np.float32)
    spread[np.arange(len(firsts)), firsts] = 1
    leaves = graph.add("MatMul", _float(graph, goes), graph.constant(spread))
    stays = graph.add("Sub", graph.constant(np.ones(length, dtype=np.float32)), leaves)
    upto = graph.constant(np.triu(np.ones((length, length), dtype=np.float32)))
    row = graph.add("Mul", graph.add("MatMul", stays, upto), stays)
    rows = np.arange(1, length - count + 1, dtype=np.float32)[:, None]
    kept = _float(
        graph, graph.add("Equal", graph.add("Unsqueeze", row, axis), graph.constant(rows))
    )
    target = graph.add("Where", goes, into, graph.whole(-1))
    taken = graph.add(
        "Equal", graph.add("Unsqueeze", target, axis), graph.constant(np.arange(length)[:, None])
    )
    moved = graph.add("MatMul", _float(graph, taken), graph.constant(spread))
    weights = graph.add("Add", kept, graph.add("MatMul", kept, moved))
    if tokens.sizes is not None:
        weights = graph.add("Mul", weights, graph.add("Unsqueeze", tokens.sizes, axis))
    counts = graph.add("ReduceSum", weights, last, keepdims=1)
    merged = graph.add("Div", graph.add("MatMul", weights, tokens.x), counts)
    return onnx_graph._Tokens(merged, graph.add("Squeeze", counts, last))


def _float(graph: onnx_graph._Graph, x: str) -> str:
    return graph.add("Cast", x, to=TensorProto.FLOAT)


if __name__ == "__main__":
    main()
