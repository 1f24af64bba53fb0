from __future__ import annotations

import json
import os

import pytest
import torch

from matvit import checkpoint
from matvit.config import MatViTConfig
from matvit.model import MatViT
from matvit.preprocess import Preprocess


@pytest.fixture
def model() -> MatViT:
    torch.manual_seed(3)
    config = MatViTConfig(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    return MatViT(config, Preprocess(img_size=16, fit="squash", mean=(0.1, 0.2, 0.3)), "little")


def test_what_is_loaded_equals_what_was_saved_bit_for_bit(model, tmp_path):
    loaded = MatViT.load(model.save(tmp_path / "enc", training={"recipe": "none"}))
    assert loaded.config == model.config
    assert loaded.preprocess == model.preprocess
    assert loaded.name == "little"
    assert loaded.fingerprint == model.fingerprint
    images = torch.randn(2, 3, 16, 16)
    for size in ("S", "M", "L", "XL"):
        assert torch.equal(loaded(images, size), model(images, size))
    assert torch.equal(loaded.backbone.head.weight, model.backbone.head.weight)
    assert checkpoint.read_settings(tmp_path / "enc").training == {"recipe": "none"}


def test_classes_whose_names_are_no_utf8_are_remembered(model, tmp_path):
    model.save(tmp_path, training={"classes": ["caf\udce9"]})
    assert checkpoint.read_settings(tmp_path).training == {"classes": ["caf\udce9"]}
    assert MatViT.load(tmp_path).fingerprint == model.fingerprint


def test_float16_storage_halves_the_file_and_round_trips_from_then_on(model, tmp_path):
    full = model.save(tmp_path / "full") / checkpoint.WEIGHTS
    half = model.save(tmp_path / "half", dtype=torch.float16) / checkpoint.WEIGHTS
    assert half.stat().st_size < 0.7 * full.stat().st_size
    loaded = MatViT.load(tmp_path / "half")
    again = MatViT.load(loaded.save(tmp_path / "again", dtype=torch.float16))
    assert loaded.fingerprint == again.fingerprint != model.fingerprint
    assert loaded(torch.ones(1, 3, 16, 16)).dtype == torch.float32


def test_saving_replaces_an_earlier_checkpoint(model, tmp_path):
    model.save(tmp_path)
    with torch.no_grad():
        model.backbone.cls_token.add_(1)
    model.save(tmp_path)
    assert MatViT.load(tmp_path).fingerprint == model.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md", checkpoint.SETTINGS, checkpoint.WEIGHTS,
    ]  # fmt: skip
    assert model.fingerprint in (tmp_path / "README.md").read_text()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match="no encoder 'matvit-huge': bundled encoders are"):
        MatViT.load("matvit-huge")


def test_changed_weights_are_found(model, tmp_path):
    model.save(tmp_path)
    weights = tmp_path / checkpoint.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-5] ^= 0x40
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="damaged or was changed"):
        MatViT.load(tmp_path)


def test_a_truncated_weights_file_is_named(model, tmp_path):
    model.save(tmp_path)
    weights = tmp_path / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read .*model\.safetensors"):
        MatViT.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format version 99, this program reads version 1"),
        (
            {"format_version": "1"},
            "config.json is not the description of an encoder: Expected `int`",
        ),
        ({"surprise": 1}, "is not the description of an encoder: .* unknown field `surprise`"),
        ({"submodel": "S"}, "holds the extracted submodel S, not a whole MatViT"),
        ({"submodel": "huge"}, "do not fit its settings: unknown size 'huge'"),
        ({"fingerprint": "0" * 15}, "Expected `str` matching regex"),
        ({"anchor": "/etc/passwd"}, "Invalid enum value '/etc/passwd'"),
        ({"preprocess": None}, "config.json is not the .* at `\\$.preprocess`"),
        ({"preprocess": {"image_size": 8}}, "makes images of 8 px, the model takes 16"),
        ({"model": None}, "config.json is not the .* at `\\$.model`"),
    ],
)
def test_settings_that_do_not_fit_are_refused(model, tmp_path, change, message):
    model.save(tmp_path)
    path = tmp_path / checkpoint.SETTINGS
    values = json.loads(path.read_text())
    del values["sha256"]  # else the change itself would be noticed
    path.write_text(json.dumps({**values, **change}))
    with pytest.raises(ValueError, match=message):
        MatViT.load(tmp_path)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.SETTINGS])
def test_a_flipped_bit_anywhere_is_found_in_the_head_and_in_the_settings_too(model, tmp_path, name):
    path = model.save(tmp_path, training={"note": "said by hand"}) / name
    content = path.read_bytes()
    for offset in range(0, len(content), max(1, len(content) // 60)):
        changed = bytearray(content)
        changed[offset] ^= 1 << offset % 8
        path.write_bytes(changed)
        try:
            loaded = MatViT.load(tmp_path)
        except ValueError as error:
            assert name in str(error)  # noqa: PT017 -- some bits change nothing: see below
        else:
            assert name == checkpoint.SETTINGS, "every bit of the weights counts"
            assert json.loads(changed) == json.loads(content), "a blank between two words"
            assert loaded.fingerprint == model.fingerprint


def test_an_encoder_without_seals_still_loads(model, tmp_path):
    path = model.save(tmp_path) / checkpoint.SETTINGS
    values = json.loads(path.read_text())
    del values["sha256"], values["files"]
    path.write_text(json.dumps(values))
    assert MatViT.load(tmp_path).fingerprint == model.fingerprint


@pytest.mark.parametrize(
    "forged", [{"depth": 4096}, {"embed_dim": 65_536}, {"num_classes": 1 << 24}]
)
def test_settings_that_ask_for_more_than_there_are_weights_are_refused_unbuilt(
    model, tmp_path, monkeypatch, forged
):
    path = model.save(tmp_path) / checkpoint.SETTINGS
    values = json.loads(path.read_text())
    values["model"].update(forged)
    config = MatViTConfig.from_dict(values["model"])
    tensors = checkpoint.load_file(tmp_path / checkpoint.WEIGHTS)
    values["fingerprint"] = values["weights"] = checkpoint.fingerprint_of(config, tensors)
    del values["sha256"]
    path.write_text(json.dumps(values))
    monkeypatch.setattr("matvit.model.whole_encoder", None)
    with pytest.raises(
        ValueError, match=r"do not fit its settings: model.safetensors has .* values"
    ):
        MatViT.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there is no FIFO")
def test_a_fifo_instead_of_weights_is_not_waited_for(model, tmp_path):
    weights = model.save(tmp_path) / checkpoint.WEIGHTS
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(ValueError, match=r"cannot read .*not a file but a FIFO"):
        MatViT.load(tmp_path)


def test_settings_that_are_no_json_are_refused(model, tmp_path):
    model.save(tmp_path)
    (tmp_path / checkpoint.SETTINGS).write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not the description of an encoder"):
        MatViT.load(tmp_path)


def test_every_bundled_encoder_loads_and_is_small():
    assert checkpoint.DEFAULT_ENCODER in checkpoint.bundled_encoders()
    for name in checkpoint.bundled_encoders():
        assert MatViT.load(name).name == name
        assert (checkpoint.locate(name) / checkpoint.WEIGHTS).stat().st_size <= 25e6
