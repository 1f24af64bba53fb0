from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from matvit.device import resolve_device
from matvit.embedding import embed
from matvit.extraction import extract
from matvit.preprocess import Preprocess
from matvit.torch_runtime import normalize_pixels, resolve_precision, to_input


def pixels(count: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", ["S", "XL", "1xS,1xL"])
def test_embeddings_are_the_models_own(tiny_model, size):
    images = (pixels().astype(np.float64) / 255 - tiny_model.preprocess.mean) / (
        tiny_model.preprocess.std
    )
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = tiny_model(batch, size).numpy()
    found = embed(tiny_model, pixels(), size, precision="float32")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32 rounding of the input


def test_batch_size_changes_nothing(tiny_model):
    whole = embed(tiny_model, pixels(), precision="float32")
    parts = embed(tiny_model, pixels(), batch_size=3, precision="float32")
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_no_images_give_no_rows(tiny_model):
    assert embed(tiny_model, pixels(0)).shape == (0, 16)


def test_bfloat16_agrees_with_float32(tiny_model):
    exact = embed(tiny_model, pixels(64), precision="float32")
    rounded = embed(tiny_model, pixels(64), precision="bfloat16")
    np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), 1, atol=1e-6)
    assert (exact * rounded).sum(axis=1).min() >= 0.999


def test_a_few_images_on_a_cpu_are_embedded_in_float32(tiny_model):
    few = pixels(3)
    assert np.array_equal(embed(tiny_model, few), embed(tiny_model, few, precision="float32"))


def test_extracted_encoder_embeds_like_its_parent(tiny_model):
    small = extract(tiny_model, "S")
    expected = embed(tiny_model, pixels(), "S", precision="float32")
    np.testing.assert_allclose(embed(small, pixels(), precision="float32"), expected, atol=1e-6)


def test_embeddings_that_are_not_finite_are_refused(tiny_model):
    broken = extract(tiny_model, "S")
    with torch.no_grad():
        broken.pos_embed.fill_(float("nan"))
    with pytest.raises(ValueError, match="encoder tiny produced embeddings that are not finite"):
        embed(broken, pixels())


def test_what_would_embed_something_else_is_refused(tiny_model):
    with pytest.raises(ValueError, match="expected uint8 pixels .* got float32"):
        embed(tiny_model, pixels().astype(np.float32))
    with pytest.raises(ValueError, match="batch_size of at least 1, got uint8 and -1"):
        embed(tiny_model, pixels(), batch_size=-1)
    training = copy.deepcopy(tiny_model).train()
    with pytest.raises(ValueError, match="is in training mode; call eval"):
        embed(training, pixels())


def test_normalisation_is_mean_and_deviation_per_channel(tiny_model):
    spec = Preprocess(img_size=16, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert normalize_pixels(white, spec).flatten().tolist() == [1.0, 1.0, 0.0]
    assert to_input(pixels(2), tiny_model).shape == (2, 3, 16, 16)


def test_precision_and_device_are_resolved_or_refused():
    cpu = torch.device("cpu")
    assert resolve_precision(cpu, "float32") == torch.float32
    assert resolve_precision(cpu, "bfloat16") == torch.bfloat16
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="precision must be auto, float32 or bfloat16, got 'f8'"):
        resolve_precision(cpu, "f8")
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda, got 'tpu'"):
        resolve_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_where_there_is_none_is_an_error():
    with pytest.raises(ValueError, match="torch sees no GPU; use auto or cpu"):
        resolve_device("cuda")
