"""The little world that the goldens are about: photos, a session of commands, five training steps.

`make.py` went through it with the code as it was then and wrote down what happened;
`test_golden.py` goes through it again. Nothing here may depend on anything that can change under
it: pixels come from a hash, files have a format that nobody compresses and a time that is set.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

DATA = Path(__file__).parent / "data"
ENCODER, CONVERTED, EXTRACTED = DATA / "encoder", DATA / "converted", DATA / "extracted"
INDEXES = DATA / "indexes"
DIARY = DATA / "session.txt"

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


# --- commands -----------------------------------------------------------------------------------


def run(arguments: Iterable[object], home: Path) -> str:
    """Run the command, and write down the call, its exit code and what it said."""
    from app.cli import main

    typed = ["matvit", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    cache = {"XDG_CACHE_HOME": str(home / "cache")}
    with (
        mock.patch.object(sys, "argv", typed),
        mock.patch.dict(os.environ, cache),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    said = f"$ {' '.join(typed)}\nexit {code}\n"
    for name, stream in (("stdout", out), ("stderr", err)):
        if text := stream.getvalue():
            said += f"--- {name}\n{text}"
    return masked(said, home)


def masked(text: str, home: Path) -> str:
    """Leave out where files lie, and how long anything took."""
    text = re.sub(r"\d+\.\d+ ms", "_ ms", _without_places(text, home))
    text = re.sub(r"[\d,]+ bytes read in \d+\.\d+ s\b", "_ bytes read in _ s", text)
    return "".join(map(_masked_line, text.splitlines(keepends=True)))


def _without_places(text: str, home: Path) -> str:
    for place, name in ((DATA.parent.parent.parent, "PROJECT"), (home, "HOME")):
        text = text.replace(str(place.resolve()), name).replace(str(place), name)
    return text


def _masked_line(line: str) -> str:
    """Mask a JSON object by the names of its values."""
    if not line.startswith("{"):
        return line
    return json.dumps(_masked_value(json.loads(line)), ensure_ascii=False) + "\n"


def _masked_value(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        if "seconds" in value:  # of what was read the manifest is a part, and names the folder
            value = {**value, "bytes": "_"}
        return {key: _masked_value(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_masked_value(each, name) for each in value]
    return "_" if value is not None and TIMES.search(name) else value


Step = tuple[str, list[object]]


def session(home: Path) -> Iterator[Step]:
    """A day with the command: the name of each step, and what is typed.

    Files that a step needs are written before it is given away, so run each before the next.
    """
    yield from _index_steps(home)
    yield from _question_steps(home)
    yield from _encoder_steps(home)
    yield from _refusals(home)


def _index_steps(home: Path) -> Iterator[Step]:
    photos, index = write_photos(home / "photos", FEW), home / "photos.index"
    encoder = ["--encoder", ENCODER]
    write_photo(photos, "apple/notes.ppm", b"P6 no image either")
    yield "index-build", ["index", "build", photos, "--out", index, *encoder, "--json"]
    change(photos)
    yield "index-add", ["index", "add", index, *encoder, "--json"]
    yield "index-add-nothing", ["index", "add", index, *encoder]
    yield "index-info", ["index", "info", index, "--json"]
    yield "index-info-failures", ["index", "info", index, "--failures", "--json"]
    yield "index-info-text", ["index", "info", index]
    yield "index-remove", ["index", "remove", index, "bread/renamed.ppm", "--id", 7, "--json"]
    write_photo(photos, "apple/notes.ppm", photo(700), 700)
    options = ["--retry-failed", "--remove-missing", "--json"]
    yield "index-add-retry", ["index", "add", index, *encoder, *options]
    yield "index-verify", ["index", "verify", index, "--json"]
    yield "index-compact", ["index", "compact", index, "--json"]
    yield "index-verify-text", ["index", "verify", index]
    search_file = next((index / "index").glob("*.faiss"))
    content = search_file.read_bytes()
    search_file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    yield "index-verify-damaged", ["index", "verify", index, "--json"]
    yield "search-damaged", ["search", index, photos / "apple/003.ppm", *encoder]
    yield "index-verify-repair", ["index", "verify", index, "--repair", "--json"]
    named = home / "hnsw.index"
    yield "index-build-kind", [
        "index", "build", photos, "--out", named, *encoder, "--kind", "HNSW", "--json",
    ]  # fmt: skip


def _question_steps(home: Path) -> Iterator[Step]:
    photos, index = home / "photos", home / "photos.index"
    encoder = ["--encoder", ENCODER]
    asked = write_photos(home / "asked", 24, first=300)
    apple, bread = asked / "apple/300.ppm", asked / "bread/301.ppm"
    yield "search", ["search", index, apple, bread, *encoder, "-k", 5, "--json"]
    yield "search-submodel", ["search", index, apple, *encoder, "--submodel", "1xS,1xM", "--json"]
    yield "search-text", ["search", index, apple, *encoder, "--submodel", "S", "-k", 3]
    yield "search-one-missing", ["search", index, apple, home / "gone.ppm", *encoder, "-k", 1]
    sizes = ["--submodels", "S,XL,1xS,1xM", "-k", 5]
    yield "evaluate", ["evaluate", index, "--queries", asked, *encoder, *sizes, "--json"]
    yield "search-untuned", ["search", index, apple, *encoder, "--max-gmacs", 0.1]
    bounds = ["--target", 0.7, "--max-loss", 0.4, "--certainty", 0.6]
    yield "tune", ["tune", index, *encoder, "--size", 48, *bounds, "--json"]
    yield "search-max-gmacs", ["search", index, apple, *encoder, "--max-gmacs", 0.00003, "--json"]
    yield "search-min-recall", ["search", index, apple, *encoder, "--min-recall", 0.5, "--json"]
    yield "search-auto", ["search", index, apple, bread, *encoder, "--submodel", "auto", "--json"]
    yield "search-calibrated", [
        "search", index, apple, *encoder, "--submodel", "S", "--calibrated", "-k", 3, "--json",
    ]  # fmt: skip
    yield "search-no-budget-fits", ["search", index, apple, *encoder, "--max-gmacs", 0.000001]
    few = home / "bundled.index"
    yield "index-build-bundled", ["index", "build", asked, "--out", few, "--json"]
    yield "search-bundled", ["search", few, photos / "cheese/005.ppm", "--submodel", "S", "--json"]
    yield "demo", [
        "demo", "--images", asked, "--out", home / "demo", *encoder, "--device", "cpu", "--json",
    ]  # fmt: skip
    yield "doctor", ["doctor", "--json"]


def _encoder_steps(home: Path) -> Iterator[Step]:
    photos = home / "photos"
    yield "extract", ["extract", ENCODER, "--submodel", "S", "--out", home / "small"]
    yield "search-extracted", [
        "search", home / "photos.index", photos / "apple/003.ppm", "--encoder", home / "small",
        "--json",
    ]  # fmt: skip
    convert = ["convert", ENCODER, "--images", photos, "--device", "cpu", "--json"]
    yield "convert-sorted", [*convert, "--no-training", "--out", home / "sorted"]
    few = ["--epochs", 2, "--batch-size", 16]
    yield "convert", [*convert, *few, "--out", home / "converted"]
    yield "convert-again", [*convert, *few, "--out", home / "converted"]
    six = write_photos(home / "six", 6, first=300)
    yield "train", [
        "train", six, "--recipe", "joint-after-plain", "--init", "matvit-tiny64",
        "--validation", six, "--device", "cpu", "--out", home / "trained",
    ]  # fmt: skip


def _refusals(home: Path) -> Iterator[Step]:
    photos, index, apple = home / "photos", home / "photos.index", home / "asked/apple/300.ppm"
    encoder = ["--encoder", ENCODER]
    build = ["index", "build", photos, *encoder]
    yield "no-command", ["paint"]
    yield "no-option", ["search", index, apple, "--louder"]
    yield "no-index", ["search", home / "no.index", apple]
    yield "no-encoder", ["search", index, apple, "--encoder", home / "nowhere"]
    yield "encoder-not-bundled", ["search", index, apple]
    yield "encoder-of-another-index", ["search", index, apple, "--encoder", "matvit-tiny64"]
    yield "no-image", ["search", index, home / "gone.ppm", *encoder]
    yield "broken-image", ["search", index, photos / "apple/broken.ppm", *encoder]
    yield "no-size", ["search", index, apple, *encoder, "--submodel", "XXL"]
    yield "no-blocks", ["search", index, apple, *encoder, "--submodel", "1xS"]
    yield "no-hits", ["search", index, apple, *encoder, "-k", 0]
    both = ["--submodel", "S", "--max-ms", 5]
    yield "size-and-budget", ["search", index, apple, *encoder, *both]
    yield "two-budgets", ["search", index, apple, *encoder, "--max-gmacs", 1, "--min-recall", 0.9]
    yield "impossible-recall", ["search", index, apple, *encoder, "--min-recall", 2]
    yield "build-over", [*build, "--out", index]
    yield "build-unknown-kind", [*build, "--out", home / "new.index", "--kind", "Fast"]
    yield "build-too-few", [*build, "--out", home / "new.index", "--kind", "IVFPQ"]
    yield "build-no-memory", [*build, "--out", home / "new.index", "--max-memory", "10B"]
    yield "build-odd-memory", [*build, "--out", home / "new.index", "--max-memory", "plenty"]
    yield "build-kind-twice", [
        *build, "--out", home / "new.index", "--kind", "Flat", "--factory", "IVF2,Flat",
    ]  # fmt: skip
    yield "build-odd-factory", [*build, "--out", home / "new.index", "--factory", "PCA8,Flat"]
    (home / "empty").mkdir()
    out = ["--out", home / "new.index"]
    yield "build-of-nothing", ["index", "build", home / "empty", *out, *encoder]
    write_photo(home / "broken", "1.ppm", b"no image")
    yield "build-of-broken", ["index", "build", home / "broken", *out, *encoder]
    yield "build-of-nowhere", ["index", "build", home / "nowhere", *out, *encoder]
    yield "add-another-folder", ["index", "add", index, home / "asked", *encoder]
    yield "remove-nothing", ["index", "remove", index]
    yield "remove-unknown", ["index", "remove", index, "apple/gone.ppm"]
    yield "remove-unknown-id", ["index", "remove", index, "--id", 9999]
    yield "evaluate-no-size", [
        "evaluate", index, "--queries", home / "asked", *encoder, "--submodels", "S,XXL",
    ]  # fmt: skip
    yield "evaluate-no-queries", ["evaluate", index, "--queries", home / "empty", *encoder]
    yield "tune-too-few", ["tune", index, *encoder, "--size", 5]
    yield "tune-odd-target", ["tune", index, *encoder, "--target", 2]
    yield "extract-over", ["extract", ENCODER, "--submodel", "S", "--out", home / "small"]
    yield "extract-no-size", ["extract", ENCODER, "--submodel", "XXL", "--out", home / "other"]
    yield "convert-too-few", [
        "convert", ENCODER, "--images", home / "asked/apple", "--out", home / "other",
    ]  # fmt: skip
    train = ["train", home / "asked", "--out", home / "other"]
    yield "train-no-recipe", [*train, "--recipe", "secret"]
    yield "train-no-start", [*train, "--recipe", "align"]
    yield "train-no-labels", ["train", home / "broken", "--out", home / "other"]
    yield "train-over", ["train", home / "six", "--out", home / "trained"]
    yield "resume-nothing", [*train, "--resume"]
    yield "demo-over", ["demo", "--images", home / "asked", "--out", photos]


FILES = {
    "demo.report.json": "demo/report/report.json",
    "demo.report.csv": "demo/report/report.csv",
    "extract.config.json": "small/config.json",
    "convert.report.json": "converted/report.json",
    "convert.config.json": "converted/config.json",
    "convert.recipe.json": "converted/recipe.json",
    "train.config.json": "trained/config.json",
    "train.log.jsonl": "trained/log.jsonl",
    "tune.tuning.json": "photos.index/tuning.json",
    "build.manifest.json": "hnsw.index/manifest.json",
}
"""Files that are left at the end of the session, and what they are called among the goldens."""


def spend_a_day(home: Path) -> dict[str, str]:
    """Go through the session; what was said and written, by name."""
    home.mkdir(parents=True, exist_ok=True)
    told = {name: run(arguments, home) for name, arguments in session(home)}
    for name, file in FILES.items():
        told[name] = _content(home / file, home)
    return told


def _content(path: Path, home: Path) -> str:
    """What was written, without its times, and without the seal of what has times or places."""
    text = _without_places(path.read_text(encoding="utf-8"), home)
    if path.suffix == ".json":
        values = _masked_value(json.loads(text))
        if "sha256" in values:
            values["sha256"] = "_"
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        return "".join(
            json.dumps({key: "_" if TIMES.search(key) else cell for key, cell in row.items()})
            + "\n"
            for row in rows
        )
    return masked(text, home)


def write_diary(told: dict[str, str]) -> None:
    """Keep what a day brought in one file."""
    text = "".join(f"=== {name}\n{each}\n" for name, each in told.items())
    DIARY.write_text(text, encoding="utf-8")


def read_diary() -> dict[str, str]:
    """Read back what `write_diary` wrote."""
    parts = re.split(r"^=== (\S+)\n", DIARY.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: text[:-1] for name, text in zip(parts[::2], parts[1::2], strict=True)}


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
    return [_masked_value(each.to_dict()) for each in found]


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
