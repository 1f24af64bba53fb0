"""`matvit train --teacher` as people use it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from matvit.config import MatViTConfig
from matvit.model import MatViT
from matvit.training import recipes


@pytest.fixture
def photos(tmp_path) -> Path:
    """Sixteen photos in one folder, of which nobody says what they show."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for number in range(16):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def teacher(tmp_path) -> Path:
    config = MatViTConfig(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    return MatViT(config, name="wise").save(tmp_path / "teacher")


@pytest.fixture(autouse=True)
def small_recipe(monkeypatch):
    small = recipes.Recipe(
        name="distill64",
        model=MatViTConfig(
            img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, dynamic_img_size=True
        ),
        phases=(
            recipes.Phase(epochs=2, img_size=16, objective="distill"),
            recipes.Phase(epochs=1, img_size=16, objective="align"),
        ),
        batch_size=8,
        views=2,
    )
    monkeypatch.setitem(recipes.RECIPES, "distill64", small)


def test_a_teacher_is_enough_to_learn_from_photos_without_labels(matvit, photos, teacher, tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"
    code, said, err = matvit(
        "train", photos, "--out", out, "--recipe", "distill64", "--teacher", teacher,
        "--cache", cache, "--decode-size", 24,
    )  # fmt: skip
    assert (code, said) == (0, "")
    assert "Trained on 16 images" in err
    training = json.loads((out / "config.json").read_text())["training"]
    assert training["teacher"]["name"] == "wise"
    assert MatViT.load(out).config.embed_dim == 16
    (answers,) = cache.glob("*.f16")
    assert answers.stat().st_size == 2 * 16 * 32 * 2  # views, images, numbers, bytes


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--recipe", "distill64"], 2, "distill64 learns from a teacher; name it with --teacher"),
        (["--teacher", "{teacher}"], 2, "joint64 learns from no teacher; leave --teacher out"),
        (["--no-labels"], 2, "--no-labels go with --teacher NAME"),
        (
            ["--recipe", "distill64", "--teacher", "{teacher}", "--validation", "{photos}"],
            1,
            "counts right classes, and no class is learned here; leave it out",
        ),
        (
            ["--recipe", "distill64", "--teacher", "resnet_9000"],
            1,
            "timm cannot load 'resnet_9000': Unknown model",
        ),
        (
            ["--recipe", "distill64", "--teacher", "{teacher}", "--teacher-size", "20"],
            1,
            "wise cannot look at images of 20 px",
        ),
        (
            ["--recipe", "distill64", "--teacher", "{photos}/gone.onnx"],
            1,
            "there is no such file",
        ),
    ],
)
def test_mistakes_are_one_clear_line(matvit, photos, teacher, tmp_path, arguments, code, message):
    given = [word.format(teacher=teacher, photos=photos) for word in arguments]
    found, out, err = matvit("train", photos, "--out", tmp_path / "new", *given)
    assert (found, out) == (code, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "new").exists()
