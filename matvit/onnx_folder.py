"""A submodel on its own as ONNX, for whoever runs it elsewhere: written, and checked there.

The folder holds `model.onnx`, in 8 bits `model.int8.onnx`, `encoder.json` with what they are, and
`golden.npz` with one image and its vector: whatever runs the files must find that vector.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
import onnxruntime
from jaxtyping import Float32, UInt8
from numpy import ndarray

from matvit.embedding import embed
from matvit.files import read_file, read_json
from matvit.onnx_encoder import OnnxEncoder
from matvit.onnx_graph import OPSET
from matvit.preprocess import Preprocess
from matvit.submodel import Submodel

GRAPH, INT8_GRAPH = "model.onnx", "model.int8.onnx"
DESCRIPTION, GOLDEN = "encoder.json", "golden.npz"
_TOLERANCE = 1e-4
_INT8_TOLERANCE = 0.01  # a saturating sum is off by more
_MERGING_TOLERANCE = 0.01  # the last bit may decide which of two equal tokens merges


class OnnxFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A graph: its hash, and the cosine of its vector of the golden image to the one kept."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    cosine: float


class OnnxDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `encoder.json` says; see `matvit.checkpoint.Settings`."""

    format_version: Literal[1]
    name: str
    fingerprint: str
    submodel: str
    dim: int
    opset: int
    preprocess: Preprocess
    preprocess_fingerprint: str
    files: dict[str, OnnxFile]


class Finding(NamedTuple):
    """How a graph did here: the cosine of its vector to the golden one, and what is wrong."""

    file: str
    cosine: float
    problem: str | None


def export_onnx(
    encoder: OnnxEncoder,
    submodel: Submodel,
    folder: Path,
    *,
    int8: bool = False,
    opset: int = OPSET,
) -> OnnxDescription:
    """Write a submodel as ONNX: pixels as `Preprocess.pixels` makes them in, unit vectors out.

    Args:
        encoder: What it is cut from.
        submodel: What to cut.
        folder: Created if missing.
        int8: Write it in 8 bits too: weights of 7, whose sums saturate on no processor.
        opset: Version of the operators, at least 17.

    Raises:
        ValueError: If this ONNX Runtime cannot run the opset.
    """
    if opset < OPSET:
        raise ValueError(f"opset must be at least {OPSET}, got {opset}")
    image = _picture(encoder.preprocess.img_size)
    vector = embed(encoder, image[None], submodel)[0]
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, rounded in ((GRAPH, False), (INT8_GRAPH, True))[: 1 + int8]:
        graph = encoder.graph(replace(submodel, int8=rounded), opset=opset).SerializeToString()
        (folder / name).write_bytes(graph)
        cosine = float(_run(graph, image) @ vector)
        files[name] = OnnxFile(hashlib.sha256(graph).hexdigest(), cosine)
    np.savez(folder / GOLDEN, image=image, vector=vector)
    described = OnnxDescription(
        format_version=1,
        name=encoder.name,
        fingerprint=encoder.fingerprint,
        submodel=str(submodel),
        dim=encoder.config.embed_dim,
        opset=opset,
        preprocess=encoder.preprocess,
        preprocess_fingerprint=encoder.preprocess.fingerprint,
        files=files,
    )
    values = msgspec.to_builtins(described) | {"preprocess": encoder.preprocess.to_dict()}
    text = msgspec.json.format(msgspec.json.encode(values), indent=2)
    (folder / DESCRIPTION).write_bytes(text + b"\n")
    return described


def check_onnx(folder: Path) -> tuple[OnnxDescription, list[Finding]]:
    """Run what `export_onnx` wrote on this machine, and compare with what it found there.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If its description or golden image is damaged.
    """
    described = read_json(
        folder / DESCRIPTION, OnnxDescription, "the description of an encoder", version=1
    )
    try:
        with np.load(folder / GOLDEN) as golden:
            image, vector = golden["image"], golden["vector"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read {folder / GOLDEN}: {error}") from error
    return described, [
        _examine(folder / name, file, image, vector, _tolerance(described, name))
        for name, file in described.files.items()
    ]


def _tolerance(described: OnnxDescription, file: str) -> float:
    """How far the cosine may be off on another machine."""
    if file == INT8_GRAPH:
        return _INT8_TOLERANCE
    return _MERGING_TOLERANCE if "~" in described.submodel else _TOLERANCE


def _examine(
    path: Path, file: OnnxFile, image: ndarray, vector: ndarray, tolerance: float
) -> Finding:
    try:
        graph = read_file(path).data
        cosine = float(_run(graph, image) @ vector)
    except Exception as error:  # noqa: BLE001 -- of all kinds, by the runtime
        return Finding(path.name, float("nan"), f"cannot run {path}: {error}")
    if hashlib.sha256(graph).hexdigest() != file.sha256:
        return Finding(path.name, cosine, f"{path} is damaged or was changed; extract it again")
    if not abs(cosine - file.cosine) <= tolerance:
        return Finding(
            path.name,
            cosine,
            f"{path} computes wrongly here: cosine {cosine:.5f} to the golden vector, "
            f"{file.cosine:.5f} where it was written",
        )
    return Finding(path.name, cosine, None)


def _run(graph: bytes, image: UInt8[ndarray, "height width 3"]) -> Float32[ndarray, " dim"]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (vectors,) = session.run(None, {"images": image[None]})
    return np.asarray(vectors[0])


def _picture(side: int) -> UInt8[ndarray, "side side 3"]:
    """A picture of waves: smooth as a photo is, and different in every channel."""
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(9 * x + 4 * y), np.cos(5 * x - 11 * y), np.sin(13 * x * y + 2)]
    return np.asarray(127.5 + 110 * np.stack(waves, axis=-1), dtype=np.uint8)
