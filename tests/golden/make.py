"""Write the goldens: what the code did, for later code to be held to.

    PYTHONPATH=CHECKOUT python tests/golden/make.py

It was run once, as root, with the code of commit e6f381b on a CPU; the names it imports are that
code's. Running it with later code would say what that does, and hold nobody to anything; so it
refuses to write over goldens that are there. What can be read of them:

    data/machine.json         where they were made: decides whether bits are compared
    data/encoder              an untrained encoder of 16 px images
    data/converted            the same, converted; data/extracted: its S
    data/indexes/NAME         indexes of photos in `/golden/photos`
    data/indexes.json         what they say of themselves
    data/answers.npz          what they answer
    data/vectors.npz          embeddings and pixels
    data/facts.json           fingerprints, mixes, hits of photos, losses
    data/session.txt          what the command said and wrote in `diary.session`
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import diary
import faiss
import numpy as np
import torch
import world
from indexing.kinds import KINDS
from matvit.extract import load_encoder
from matvit.recipes import recipe
from matvit.train import train
from matvit.training_data import LabelledPixels

from indexing import Corpus, ImageIndex
from matvit import MatViT, MatViTConfig
from retrieval import Retriever

_ROOT = Path(world.ROOT)
_BUNDLED = "matvit-tiny64"
_SHARD = 16


def main() -> None:
    """Write everything."""
    if world.DATA.exists():
        sys.exit(f"{world.DATA} is there already")
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    encoder = _encoders()
    _indexes(encoder)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        _facts(encoder, home)
        diary.write_diary(diary.spend_a_day(home / "day"))
    _write_json("machine", world.machine())


def _encoders() -> MatViT:
    torch.manual_seed(0)
    config = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    encoder = MatViT(config, name="golden")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    encoder.save(world.ENCODER, training={"seed": 0})
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        photos = world.write_photos(home / "photos", 60)
        options = ["--images", photos, "--epochs", 2, "--batch-size", 16, "--device", "cpu"]
        diary.run(["convert", world.ENCODER, "--out", home / "converted", *options], home)
        _copy(home / "converted", world.CONVERTED)
        diary.run(["extract", world.CONVERTED, "--submodel", "S", "--out", world.EXTRACTED], home)
    return MatViT.load(world.ENCODER)


def _indexes(encoder: MatViT) -> None:
    """Build all indexes of photos in `/golden/photos`, then write down what they are."""
    for kind in KINDS:
        _build(kind, encoder, world.PHOTOS, kind=kind)
    for factory in ("IVF4,SQ6", "HNSW8,SQ8"):
        _build(factory.replace(",", "-"), encoder, world.PHOTOS, factory=factory)
    _build("bundled", MatViT.load(_BUNDLED), 30)
    updated = _build("updated", encoder, 120, kind="IVFSQ8")
    index = ImageIndex.open(updated)
    index.add(encoder, Corpus.open(world.change(_ROOT)), remove_missing=True)
    index.remove([5, 6], paths=["cheese/008.ppm"])
    index.compact()
    index.remove([30, 31])
    _build("tuned", encoder, world.FEW)
    home = world.INDEXES / "tuned"
    tune = ["--encoder", world.ENCODER, "--size", 80, "--max-loss", 0.4, "--certainty", 0.6]
    diary.run(["tune", home, *tune], Path(tempfile.mkdtemp()))
    _unfinished(encoder)
    told, arrays = {}, {}
    for path in sorted(world.INDEXES.iterdir()):
        for lock in (path / "LOCK", path / "manifest.json.prev"):
            lock.unlink(missing_ok=True)
        with _finished(path, encoder) as finished:
            index = ImageIndex.open(finished)
            told[path.name] = world.facts(index)
            arrays |= {f"{path.name}/{key}": each for key, each in world.answers(index).items()}
    _write_json("indexes", told)
    np.savez_compressed(world.DATA / "answers.npz", **arrays)
    shutil.rmtree(_ROOT)


def _build(name: str, encoder: MatViT, count: int, **options: Any) -> Path:
    _fresh(count)
    return ImageIndex.build(encoder, Corpus.open(_ROOT), world.INDEXES / name, **options).path


def _fresh(count: int) -> None:
    shutil.rmtree(_ROOT, ignore_errors=True)
    world.write_photos(_ROOT, count)


def _unfinished(encoder: MatViT) -> None:
    """Stop a build and an addition in their third shard, of sixteen images each."""
    with mock.patch("indexing.build.SHARD_SIZE", _SHARD), _stopping(encoder):
        _build("unfinished-build", encoder, 60)
    path = _build("unfinished-add", encoder, 40)
    world.write_photos(_ROOT, 50, first=400)
    with mock.patch("indexing.add.SHARD_SIZE", _SHARD), _stopping(encoder):
        ImageIndex.open(path).add(encoder, Corpus.open(world.change(_ROOT)))


@contextmanager
def _stopping(encoder: MatViT) -> Iterator[None]:
    """Interrupt what is done when the encoder is called for the third time."""
    calls = []

    def embed_pixels(*arguments: Any, **options: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return MatViT.embed_pixels(encoder, *arguments, **options)

    try:
        with mock.patch.object(encoder, "embed_pixels", embed_pixels):
            yield
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not interrupted")


@contextmanager
def _finished(path: Path, encoder: MatViT) -> Iterator[Path]:
    """An index; of an unfinished one a copy that was finished."""
    if not path.name.startswith("unfinished"):
        yield path
        return
    _fresh(60 if path.name == "unfinished-build" else 40)
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(path, Path(folder) / "index")
        if path.name == "unfinished-build":
            ImageIndex.build(encoder, Corpus.open(_ROOT), copy)
        else:
            world.write_photos(_ROOT, 50, first=400)
            ImageIndex.open(copy).add(encoder, Corpus.open(world.change(_ROOT)))
        yield copy


def _facts(encoder: MatViT, home: Path) -> None:
    bundled, converted = MatViT.load(_BUNDLED), MatViT.load(world.CONVERTED)
    encoders: dict[str, Any] = {
        "encoder": encoder,
        "converted": converted,
        "extracted": load_encoder(world.EXTRACTED, runtime="torch"),
        "bundled": bundled,
    }
    arrays = {}
    for name, each in encoders.items():
        sizes = [None] if name == "extracted" else [*world.SIZES[:4], *_mixed(each)]
        for size, vectors in world.vectors(each, sizes).items():
            arrays[f"{name}/{size}"] = vectors
        arrays[f"{name}/pixels"] = each.preprocess.pixels(world.photo(300))
    np.savez_compressed(world.DATA / "vectors.npz", **arrays)
    large = MatViTConfig(img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12)
    tuned = ImageIndex.open(world.INDEXES / "tuned")
    data = LabelledPixels.load(world.write_photos(home / "photos", 64), encoder.preprocess)
    facts = {
        "fingerprints": {name: world.fingerprints(each) for name, each in encoders.items()},
        "mixes": {
            "bundled": world.mixes(bundled.config),
            "encoder": world.mixes(encoder.config),
            "ViT-B/16": world.mixes(large),
        },
        "hits": {
            "encoder": world.hits(Retriever(encoder, tuned).search, [*world.SIZES, "auto"]),
            "converted": world.hits(Retriever(converted, tuned).search, world.SIZES),
            "extracted": world.hits(Retriever(encoders["extracted"], tuned).search, ["S"]),
        },
        "losses": {
            objective: world.five_steps(objective, home, train, recipe("joint64"), data, encoder)
            for objective in world.OBJECTIVES
        },
    }
    _write_json("facts", facts)


def _mixed(encoder: MatViT) -> tuple[str, ...]:
    return world.SIZES[4:] if encoder.config.depth == 2 else ("2xS,4xL",)


def _copy(source: Path, target: Path) -> None:
    """Copy what an encoder is; reports and logs are told elsewhere."""
    target.mkdir(parents=True)
    for name in ("model.safetensors", "anchor.safetensors", "config.json"):
        shutil.copy(source / name, target / name)


def _write_json(name: str, values: Any) -> None:
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    (world.DATA / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
