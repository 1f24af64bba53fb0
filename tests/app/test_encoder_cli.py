"""`matvit convert` as people use it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants as hub
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from indexing.corpus.corpus import Corpus
from matvit.conversion.conversion import split
from matvit.conversion.from_timm import from_timm
from matvit.conversion.reorder import reorder
from matvit.model import MatViT
from matvit.training.data import LabelledPixels


def plain_vit() -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return vit


@pytest.fixture
def photos(tmp_path) -> Path:
    """Thirty photos without labels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((24, 20)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def original(tmp_path) -> Path:
    return from_timm(plain_vit()).save(tmp_path / "original")


def test_an_index_of_the_original_answers_the_converted_encoder(matvit, photos, original, tmp_path):
    index, out = tmp_path / "photos.index", tmp_path / "converted"
    matvit("index", "build", photos, "--out", index, "--encoder", original)
    code, table, err = matvit(
        "convert", original, "--images", photos, "--out", out, "--epochs", 3, "--batch-size", 8
    )
    assert code == 0
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["S", "M", "L", "XL"]
    assert "cut as it is" in table
    assert "trained" in table
    assert "24 images to learn from, 6 held out" in err
    assert f"unchanged ({MatViT.load(original).fingerprint})" in err
    for size in ("XL", "S"):
        found = [
            matvit(
                "search", index, photos / "07.png", "--json", "--encoder", each, "--submodel", size
            )
            for each in (original, out)
        ]
        assert [each[0] for each in found] == [0, 0]
        hits = [json.loads(each[1])["hits"] for each in found]
        assert (hits[0] == hits[1]) == (size == "XL")


def test_json_has_a_row_per_size_with_every_stage(matvit, photos, original, tmp_path):
    out = tmp_path / "converted"
    code, text, _ = matvit(
        "convert", original, "--images", photos, "--out", out, "--no-training", "--json"
    )
    rows = [json.loads(line) for line in text.splitlines()]
    assert code == 0
    assert [row["submodel"] for row in rows] == ["S", "M", "L", "XL"]
    assert list(rows[0]) == ["submodel", "macs", "macs_fraction", "cut", "reordered", "trained"]
    assert set(rows[0]["cut"]) == {"cosine", "overlap@10"}
    assert all(row["trained"] is None for row in rows)
    assert rows[0]["reordered"]["cosine"] > rows[0]["cut"]["cosine"]
    assert rows[3]["cut"]["overlap@10"] == rows[3]["macs_fraction"] == 1
    report = json.loads((out / "report.json").read_text())
    assert report["sizes"] == rows
    assert report["encoder"]["fingerprint"] == MatViT.load(original).fingerprint
    counts = {key: report[key] for key in ("images", "database", "held_out", "seed", "recipe")}
    assert counts == {"images": 24, "database": 24, "held_out": 6, "seed": 0, "recipe": None}
    _, table, _ = matvit(
        "convert", original, "--images", photos, "--out", out / "b", "--no-training"
    )
    assert "trained" not in table


def test_an_order_that_is_good_already_is_kept(matvit, photos, tmp_path):
    model = from_timm(plain_vit())
    shown, _ = split(LabelledPixels.load(Corpus.open(photos), model.preprocess, labels=False))
    reorder(model, shown.pixels).save(tmp_path / "sorted")
    code, _, err = matvit(
        "convert", tmp_path / "sorted", "--images", photos, "--out", tmp_path / "out",
        "--no-training",
    )  # fmt: skip
    assert (code, "they stay as they are" in err) == (0, True)


def test_a_timm_name_will_do(matvit, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: plain_vit())
    out = tmp_path / "converted"
    code, _, err = matvit(
        "convert", "vit_tiny_patch16_224", "--images", photos, "--out", out, "--no-training"
    )
    assert (code, "the encoder is in" in err) == (0, True)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(MatViT.load(out)(images), from_timm(plain_vit())(images))


def test_unreadable_images_are_left_out_and_counted(matvit, photos, original, tmp_path):
    (photos / "letter.jpg").write_text("Dear reader")
    code, _, err = matvit(
        "convert", original, "--images", photos, "--out", tmp_path / "all", "--no-training"
    )
    assert code == 3
    assert "24 images to learn from, 6 held out" in err
    assert "1 images could not be used" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{gone}"], "there is no such folder"),
        (["vit_nothing_patch16"], "timm cannot load 'vit_nothing_patch16': Unknown model"),
        (["vit_small_patch16_36x1_224"], "timm has no pretrained weights for"),
        (["{original}", "--image-size", "32"], "--image-size is for encoders that timm loads"),
        (["{original}", "--images", "{gone}"], "no such folder or file"),
        (["{original}", "--out", "{photos}"], "is not empty; choose another folder, or resume"),
        (["{original}", "--learning-rate", "0"], "learning_rate must be a number above 0, got 0.0"),
        (["{original}", "--resume"], "no conversion to resume in"),
        (["{original}", "--max-images", "20", "--epochs", "0.01"], "has no steps on 16 images"),
    ],
)
def test_mistakes_are_one_clear_line(matvit, photos, original, tmp_path, arguments, message):
    places = {"gone": tmp_path / "no" / "where", "original": original, "photos": photos}
    given = [word.format(**places) for word in arguments]
    given += [] if "--images" in given else ["--images", str(photos)]
    given += [] if "--out" in given else ["--out", str(tmp_path / "new")]
    code, out, err = matvit("convert", *given)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "new").exists()
