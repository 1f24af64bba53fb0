"""Small models and images that many tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from matvit.config import MatViTConfig
from matvit.model import MatViT
from matvit.preprocess import Preprocess

pytest_plugins = ["page_fixtures"]

# Results do not depend on the number of threads, and small work is slower on several.
torch.set_num_threads(1)
faiss.omp_set_num_threads(1)

# The same examples on every machine, and none fails for being slow.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

TINY = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)


@pytest.fixture(scope="session")
def tiny_model() -> MatViT:
    """An untrained encoder of 16 px images with two blocks of 64 hidden units."""
    torch.manual_seed(0)
    return MatViT(TINY, Preprocess(img_size=16), "tiny")


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Twelve distinct PNG images of 24 x 20 px in three class folders."""
    return _twelve_photos(tmp_path / "photos")


@pytest.fixture(scope="session")
def shared_photos(tmp_path_factory) -> Path:
    """The same, for tests that leave them as they are."""
    return _twelve_photos(tmp_path_factory.mktemp("shared") / "photos")


def _twelve_photos(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(12):
        folder = root / ("apple", "bread", "cheese")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return root


@pytest.fixture
def matvit(monkeypatch, capsys):
    """Run the command and return exit code, stdout and stderr."""
    from app.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["matvit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def encoder(tiny_model, tmp_path_factory) -> Path:
    """The tiny encoder in a folder of its own."""
    return tiny_model.save(tmp_path_factory.mktemp("encoder") / "tiny")
