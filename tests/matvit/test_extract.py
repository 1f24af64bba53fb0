from __future__ import annotations

import json

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from matvit.checkpoint import SETTINGS
from matvit.config import MatViTConfig
from matvit.extraction import ExtractedViT, extract
from matvit.loading import load_encoder, save_encoder
from matvit.model import MatViT

CONFIG = MatViTConfig(
    img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=4, reg_tokens=1
)


@pytest.fixture
def model() -> MatViT:
    torch.manual_seed(0)
    return MatViT(CONFIG, name="parent").double()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, dtype=torch.float64)


@pytest.mark.parametrize("size", ["S", "M", "L", "XL", "1xS,1xXL,1x33"])
def test_extracted_encoder_gives_the_submodels_vectors(model, images, size):
    torch.testing.assert_close(
        extract(model, size)(images), model(images, size), rtol=0, atol=1e-14
    )


def test_extracted_weights_load_into_an_ordinary_timm_vit(model, images):
    small = extract(model, "S")
    assert isinstance(small, VisionTransformer)
    plain = VisionTransformer(**{**CONFIG.to_dict(), "mlp_ratio": 0.5, "num_classes": 0})
    plain.double().eval().load_state_dict(small.state_dict())
    vectors = plain(images)
    expected = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(small(images), expected, rtol=0, atol=1e-14)


def test_extracted_encoder_carries_its_parents_fingerprint(model):
    small = extract(model, "S")
    assert small.fingerprint == model.fingerprint
    assert small.preprocess == model.preprocess


def test_extracted_encoder_is_a_copy(model, images):
    small = extract(model, "S")
    before = model(images, "S")
    with torch.no_grad():
        small.blocks[0].mlp.fc1.weight.zero_()
    assert torch.equal(model(images, "S"), before)


def test_extracted_weights_that_change_no_longer_speak_for_the_parent(model):
    small = extract(model, "S")
    assert small.to(torch.float32).fingerprint == model.fingerprint
    with torch.no_grad():
        small.blocks[0].mlp.fc1.bias.add_(1)
    with pytest.raises(ValueError, match="have changed since it was extracted"):
        _ = small.fingerprint


def test_extracted_encoder_refuses_other_sizes(model, images):
    small = extract(model, "S")
    assert str(small.submodel(None)) == str(small.submodel("3xS")) == "S"
    with pytest.raises(ValueError, match="is the extracted submodel S and holds no XL"):
        small.encode(images, "XL")


def test_saved_extracted_encoder_loads_to_the_same(model, images, tmp_path):
    small = extract(model.float(), "1xS,2xM")
    loaded = load_encoder(save_encoder(small, tmp_path / "small"), runtime="torch")
    assert isinstance(loaded, ExtractedViT)
    assert torch.equal(loaded(images.float()), small(images.float()))
    assert loaded.fingerprint == model.fingerprint
    assert (loaded.name, str(loaded.submodel())) == ("parent", "1xS,2xM")
    whole = model.save(tmp_path / "whole") / "model.safetensors"
    assert (tmp_path / "small" / "model.safetensors").stat().st_size < whole.stat().st_size
    with pytest.raises(ValueError, match="holds the extracted submodel 1xS,2xM"):
        MatViT.load(tmp_path / "small")
    assert isinstance(load_encoder(tmp_path / "whole", runtime="torch"), MatViT)


def test_an_extracted_encoder_in_half_precision_loads_too(model, images, tmp_path):
    small = extract(model.float(), "S")
    loaded = load_encoder(save_encoder(small, tmp_path, dtype=torch.float16), runtime="torch")
    assert loaded.fingerprint == model.fingerprint
    assert loaded.weights_fingerprint != small.weights_fingerprint
    torch.testing.assert_close(
        loaded.encode(images.float()), small(images.float()), atol=1e-2, rtol=0
    )


def test_weights_of_another_size_than_the_settings_say_are_refused(model, tmp_path):
    path = model.save(tmp_path) / SETTINGS
    values = json.loads(path.read_text()) | {"submodel": "S"}
    del values["sha256"]  # else the change itself would be noticed
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"do not fit its settings: .*size mismatch"):
        load_encoder(tmp_path, runtime="torch")
