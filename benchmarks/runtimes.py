"""What runs an encoder: milliseconds of one image and of 64, memory, and what is found with it.

    python benchmarks/runtimes.py [--encoder NAME] [--threads 2] [--images DATA --queries DATA]

Every runtime has a process of its own, and several turns. `torch` and `onnx` are this project's;
`timm` runs the extracted submodel as a plain timm model, `torch.onnx` runs what torch exports of it
in ONNX Runtime, and OpenVINO (`pip install openvino`; left out without) runs our graph, with
float32 asked for and as it comes. What is found is measured on DATA with classes, by default
scikit-learn's digits as in `matvit demo`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import matvit  # torch comes with the first name that needs it, and counts in the memory of those
from matvit import DEFAULT_ENCODER, embed, load_encoder

SIZES = ("S", "XL")
_MANY = 64
_WARM, _ONE, _BATCHES = 10, 100, 5

Run = Callable[[np.ndarray], object]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--images")
    parser.add_argument("--queries")
    parser.add_argument("--name", default="runtimes")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(measure(given.encoder, *given.one, given.threads)))
        return
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(given.turns):
        for runtime in RUNTIMES:
            if runtime.startswith("openvino") and find_spec("openvino") is None:
                continue
            for size in SIZES:
                found = _in_a_process(given, runtime, size)
                before = rows.get((runtime, size), found)
                rows[runtime, size] = {
                    key: min(value, before[key]) if key.startswith("ms") else value
                    for key, value in found.items()
                }
                print(runtime, size, rows[runtime, size], file=sys.stderr)
    from provenance import provenance, without_paths, write_result

    write_result(
        given.name,
        {
            **provenance("python benchmarks/runtimes.py " + without_paths(sys.argv[1:])),
            "encoder": given.encoder,
            "measured_with_threads": given.threads,
            "rows": list(rows.values()),
            "found": judge(given.encoder, given.images, given.queries),
        },
    )


def _in_a_process(given: argparse.Namespace, runtime: str, size: str) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--encoder", given.encoder, "--threads", str(given.threads),
        "--one", runtime, size,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(encoder: str, runtime: str, size: str, threads: int) -> dict[str, Any]:
    """Time one runtime, in this process."""
    start = perf_counter()
    run, side = RUNTIMES[runtime](encoder, size, threads)
    loaded = perf_counter() - start
    pixels = np.random.default_rng(0).integers(0, 256, (_MANY, side, side, 3), dtype=np.uint8)
    one = [_ms(run, pixels[row % _MANY][None]) for row in range(_WARM + _ONE)][_WARM:]
    many = [_ms(run, pixels) for _ in range(1 + _BATCHES)][1:]
    return {
        "runtime": runtime,
        "submodel": size,
        "ms": float(np.median(one)),
        "ms_fastest": min(one),
        "ms_of_64": float(np.median(many)),
        "load_s": loaded,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def _ms(run: Run, pixels: np.ndarray) -> float:
    start = perf_counter()
    run(pixels)
    return 1000 * (perf_counter() - start)


def _torch(encoder: str, size: str, threads: int) -> tuple[Run, int]:
    import torch

    torch.set_num_threads(threads)
    model = matvit.MatViT.load(encoder)
    submodel = model.submodel(size)
    return (
        lambda pixels: embed(model, pixels, submodel, precision="float32")
    ), model.config.img_size


def _timm(encoder: str, size: str, threads: int) -> tuple[Run, int]:
    import torch

    from matvit.torch_runtime import to_input

    torch.set_num_threads(threads)
    model = matvit.extract(matvit.MatViT.load(encoder), size)

    def run(pixels: np.ndarray) -> object:
        with torch.inference_mode():
            return model(to_input(pixels, model)).numpy()

    return run, model.config.img_size


def _torch_onnx(encoder: str, size: str, threads: int) -> tuple[Run, int]:
    import torch

    from matvit.torch_runtime import to_input

    model = matvit.extract(matvit.MatViT.load(encoder), size)
    side = model.config.img_size
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        torch.onnx.export(
            model, (torch.zeros(1, 3, side, side),), file.name, dynamo=False,
            input_names=["images"], dynamic_axes={"images": {0: "batch"}}, opset_version=17,
        )  # fmt: skip
        session = _session(Path(file.name).read_bytes(), threads)
    return lambda pixels: session.run(None, {"images": to_input(pixels, model).numpy()}), side


def _onnx(encoder: str, size: str, threads: int, end: str = "") -> tuple[Run, int]:
    model = load_encoder(encoder, runtime="onnx", threads=threads)
    submodel = model.submodel(size + end)
    return lambda pixels: embed(model, pixels, submodel), model.config.img_size


def _openvino(encoder: str, size: str, threads: int, **hint: str) -> tuple[Run, int]:
    import openvino

    model = load_encoder(encoder, runtime="onnx")
    assert isinstance(model, matvit.OnnxEncoder)
    core = openvino.Core()
    graph = core.read_model(model.graph(model.submodel(size)).SerializeToString())
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_NUM_THREADS": threads, **hint})
    return lambda pixels: compiled([pixels])[0], model.config.img_size


def _session(graph: bytes, threads: int) -> Any:  # noqa: ANN401
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


RUNTIMES: dict[str, Callable[..., tuple[Run, int]]] = {
    "torch": _torch,
    "timm": _timm,
    "torch.onnx": _torch_onnx,
    "onnx": _onnx,
    "onnx int8": partial(_onnx, end=":int8"),
    "openvino f32": partial(_openvino, INFERENCE_PRECISION_HINT="f32"),
    "openvino": _openvino,
}


def judge(encoder: str, images: str | None, queries: str | None) -> list[dict[str, Any]]:
    """Say what every precision finds, in an index of torch's float32 vectors at full size."""
    from digits import write_digits

    from app.demo import split
    from indexing import Corpus, ImageIndex
    from retrieval import Retriever, evaluate

    with tempfile.TemporaryDirectory() as work:
        if images is None or queries is None:
            database, asked = split(Corpus.open(write_digits(Path(work) / "digits")))
        else:
            database, asked = Corpus.open(images), Corpus.open(queries)
        by_torch, by_onnx = matvit.MatViT.load(encoder), load_encoder(encoder, runtime="onnx")
        index = ImageIndex.build(by_torch, database, Path(work) / "index", kind="Flat")
        rounded = [f"{size}:int8" for size in SIZES]
        return [
            {"runtime": name, **point.to_dict()}
            for name, model, sizes in (
                ("torch", by_torch, SIZES),
                ("onnx", by_onnx, [*SIZES, *rounded]),
            )
            for point in evaluate(Retriever(model, index), asked, sizes, latency_queries=0)
        ]


if __name__ == "__main__":
    main()
