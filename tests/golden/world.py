"""The little world that the goldens are about: photos, five training steps.

`make.py` went through it with the code as it was then and wrote down what happened;
`test_golden.py` goes through it again. Nothing here may depend on anything that can change under
it: pixels come from a hash, files have a format that nobody compresses and a time that is set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

DATA = Path(__file__).parent / "data"
ENCODER, CONVERTED, EXTRACTED = DATA / "encoder", DATA / "converted", DATA / "extracted"
INDEXES = DATA / "indexes"

ROOT = "/golden/photos"
"""Where the photos of the recorded indexes were; a test puts its own in their place."""

PHOTOS = 260
"""As many as the greediest kind needs: a product quantiser makes 256 centroids."""

FEW = 90
K = 10
SIZES = ("S", "M", "L", "XL", "1xS,1xXL", "1xL,1x7")
TIMES = re.compile(r"_ms|seconds|images_per_s|_p50|_p95|^time$")
_CLASSES = ("apple", "bread", "cheese")
_COLOURS = ((200, 60, 50), (170, 130, 70), (230, 210, 90))
_EPOCH_NS = 1_700_000_000_000_000_000
_LIBRARIES = ("torch", "timm", "faiss-gpu", "faiss-cpu", "numpy", "pillow", "pyarrow")


# --- photos and vectors ---------------------------------------------------------------------------


def photo(number: int) -> bytes:
    """A PPM file of 24 x 20 px: a checkerboard of sixteen shades of the colour of its class."""
    noise = np.frombuffer(hashlib.shake_256(b"photo %d" % number).digest(48), dtype=np.uint8)
    colour = np.array(_COLOURS[number % 3])
    shades = (2 * colour + noise.reshape(4, 4, 3).astype(np.int64)) // 3
    return b"P6 24 20 255\n" + np.kron(shades, np.ones((5, 6, 1))).astype(np.uint8).tobytes()


def write_photo(root: Path, name: str, content: bytes, time: int = 0) -> Path:
    """Write a file that was last changed at a time of our own choice."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(_EPOCH_NS, _EPOCH_NS + time))
    return path


def write_photos(root: Path, count: int, first: int = 0) -> Path:
    """Write photos in three classes."""
    for number in range(first, first + count):
        write_photo(root, f"{_CLASSES[number % 3]}/{number:03}.ppm", photo(number), number)
    return root


def queries(dim: int = 16, count: int = 50) -> np.ndarray:
    """Vectors that point anywhere, of the lengths 1 to `count`."""
    bits = hashlib.shake_256(b"queries").digest(2 * dim * count)
    rows = np.frombuffer(bits, dtype="<i2").reshape(count, dim).astype(np.float64)
    lengths = np.arange(1, count + 1)[:, None] / np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows * lengths).astype(np.float32)


def change(photos: Path) -> Path:
    """Change a corpus in every way that an update can meet."""
    write_photo(photos, "apple/000.ppm", photo(500), 500)  # other content
    (photos / "bread/001.ppm").rename(photos / "bread/renamed.ppm")
    (photos / "cheese/002.ppm").unlink()
    write_photo(photos, "apple/broken.ppm", b"no image", 501)
    write_photo(photos, "dates/503.ppm", photo(503), 503)  # a class of its own
    return write_photos(photos, 9, first=600)


# --- machines ---------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What decides the last bits of a sum of floats: instructions, caches, libraries."""
    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text(encoding="utf-8").split("\n\n")[0] if cpu.exists() else platform.version()
    kept = ("vendor_id", "cpu family", "model", "stepping", "cache size", "flags")
    lines = [line for line in text.splitlines() if line.split("\t")[0].strip() in kept]
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "processor": hashlib.sha256("\n".join(lines or [text]).encode()).hexdigest()[:16],
        "libraries": versions,
    }


# --- what may change ---------------------------------------------------------------------------


def masked_value(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        if "seconds" in value:  # of what was read the manifest is a part, and names the folder
            value = {**value, "bytes": "_"}
        return {key: masked_value(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [masked_value(each, name) for each in value]
    return "_" if value is not None and TIMES.search(name) else value


# --- indexes ------------------------------------------------------------------------------------


def relocate(index: Path, photos: Path) -> Path:
    """Tell an index that its photos are elsewhere, and seal its manifest again.

    The seal is the SHA-256 of the JSON of all the rest, in one line and in the order written.
    """
    manifest = index / "manifest.json"
    values = json.loads(manifest.read_bytes())
    values.pop("sha256")
    for corpus in (values["corpus"], values["adding"]):
        if corpus is not None:
            corpus["root"] = str(photos.resolve())
    seal = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    manifest.write_text(json.dumps({**values, "sha256": seal}, indent=2) + "\n", encoding="utf-8")
    return index


def facts(index: Any) -> dict[str, Any]:
    """What an opened index says of itself, in plain JSON."""
    columns = index.metadata.to_pydict()
    return {
        "info": {**index.info(), "path": "INDEX", "corpus": {**index.info()["corpus"], "root": ""}},
        "classes": index.class_names,
        "failures": [[each.path, each.error, each.message] for each in index.failures],
        "columns": {name: _digest(json.dumps(values)) for name, values in columns.items()},
        "paths": _digest(json.dumps(index.paths)),
        "labels": _digest(json.dumps(index.labels.tolist())),
    }


def answers(index: Any) -> dict[str, np.ndarray]:
    """Ids and scores of all queries, and of two of them down to the last image."""
    vectors = queries(index.embeddings.shape[1])
    (near_ids, near), (all_ids, everything) = (
        index.search(vectors, K),
        index.search(vectors[:2], len(index)),
    )
    return {"ids": near_ids, "scores": near, "all_ids": all_ids, "all_scores": everything}


def hits(search: Callable[..., Any], sizes: Iterable[str]) -> list[dict[str, Any]]:
    """What three photos find with several sizes."""
    found = [search(photo(number), size, 5) for size in sizes for number in (300, 301, 302)]
    return [masked_value(each.to_dict()) for each in found]


def _digest(text: str | bytes) -> str:
    content = text if isinstance(text, bytes) else text.encode()
    return hashlib.sha256(content).hexdigest()[:16]


# --- encoders -----------------------------------------------------------------------------------


def images(config: Any) -> torch.Tensor:
    """Three images of noise, as an encoder takes them."""
    shape = (3, 3, config.img_size, config.img_size)
    bits = hashlib.shake_256(b"images").digest(int(np.prod(shape)))
    values = np.frombuffer(bits, dtype=np.uint8).astype(np.float32).reshape(shape)
    return torch.from_numpy(values / 64 - 2)


def vectors(encoder: Any, sizes: Iterable[str | None]) -> dict[str, np.ndarray]:
    """Embeddings of noise in float32, by size."""
    with torch.inference_mode():
        return {str(size): encoder.encode(images(encoder.config), size).numpy() for size in sizes}


def fingerprints(encoder: Any) -> dict[str, str]:
    """Everything that an encoder is recognised by."""
    return {
        "name": encoder.name,
        "fingerprint": encoder.fingerprint,
        "weights_fingerprint": encoder.weights_fingerprint,
        "preprocess": encoder.preprocess.fingerprint,
        "submodel": str(encoder.submodel()),
        "config": _digest(json.dumps(encoder.config.to_dict(), sort_keys=True)),
    }


def mixes(config: Any) -> dict[str, Any]:
    """The texts and the costs of all mixes of an architecture."""
    from matvit import Submodel, count_macs, count_params, mix_n_match, trained_sizes

    lines = []
    for mix in mix_n_match(config):
        assert Submodel.parse(str(mix), depth=config.depth, hidden_dim=config.hidden_dim) == mix
        lines.append(f"{mix} {count_macs(config, mix)} {count_params(config, mix)}")
    return {
        "count": len(lines),
        "all": _digest("\n".join(lines)),
        "spread": list(map(str, mix_n_match(config, 12))),
        "trained": [f"{size} {count_macs(config, size)}" for size in trained_sizes(config)],
    }


# --- training -----------------------------------------------------------------------------------

OBJECTIVES: dict[str, dict[str, Any]] = {
    "classify": {},
    "sampled": {"sampled": True},
    "align": {
        "objective": "align",
        "neighbour_weight": 0.5,
        "sizes": ("S", "XL", "random"),
        "weights": (1.0, 2.0, 1.0),
    },
}
"""What the only phase of each recipe has of its own."""


def five_steps(
    objective: str, home: Path, train: Callable[..., Any], recipe: Any, data: Any, start: Any
) -> dict[str, Any]:
    """Train for five steps of two micro-batches each, in float32.

    Args:
        objective: One of `OBJECTIVES`.
        home: Folder to work in.
        train: `matvit.training.train`.
        recipe: Any recipe, to take the rest from.
        data: 64 labelled images.
        start: Encoder whose architecture, and for an alignment weights, to start from.

    Returns:
        What was propagated back, in order, and what became of the encoder.
    """
    from dataclasses import replace

    phase = replace(
        recipe.phases[0], epochs=1.25, img_size=16, micro_batch=8, **OBJECTIVES[objective]
    )
    chosen = replace(
        recipe, name="golden", model=start.config, phases=(phase,), batch_size=16,
        drop_path_rate=0.1, grayscale=0.2, mixup=0.2, cutmix=1.0, layer_decay=0.9,
        ema_decay=0.9, warmup_steps=2,
    )  # fmt: skip
    losses, backward, autocast = [], torch.autograd.backward, torch.autocast.__init__

    def watched(tensors: Any, *arguments: Any, **options: Any) -> None:
        losses.append((tensors if isinstance(tensors, torch.Tensor) else tensors[0]).item())
        backward(tensors, *arguments, **options)

    def off(self: Any, device_type: str, *_: Any, **__: Any) -> None:
        autocast(self, device_type, enabled=False)

    with (
        mock.patch.object(torch.autograd, "backward", watched),
        mock.patch.object(torch.autocast, "__init__", off),
    ):
        init = start if objective == "align" else None
        encoder = train(chosen, data, home / objective, seed=3, device="cpu", init=init)
    return {"losses": losses, **fingerprints(encoder)}
