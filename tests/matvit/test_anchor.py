"""Encoders whose full size is served from weights of its own, bit for bit."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from indexing import Corpus, ImageIndex
from matvit import checkpoint
from matvit.config import MatViTConfig
from matvit.cost import count_macs
from matvit.extraction import extract
from matvit.loading import load_encoder, save_encoder
from matvit.model import AnchoredMatViT, MatViT
from matvit.preprocess import Preprocess
from retrieval import Retriever

BASE = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2)
SHAPES = {"token": BASE, "norm after pooling": replace(BASE, global_pool="avg")}
SIZES = ["M", "XL", "1xXL,2xS", "S", "XL"]


def build(seed: int, config: MatViTConfig = BASE) -> MatViT:
    torch.manual_seed(seed)
    model = MatViT(config, Preprocess(img_size=16), f"model {seed}")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=SHAPES)
def original(request) -> MatViT:
    return build(1, replace(SHAPES[request.param], num_classes=3))


@pytest.fixture
def nested(original) -> MatViT:
    return build(2, replace(original.config, num_classes=0))


@pytest.fixture
def converted(original, nested) -> AnchoredMatViT:
    return AnchoredMatViT.join(nested, original)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_full_size_is_the_originals_and_the_rest_is_nested(converted, original, nested, images):
    assert torch.equal(converted(images), original(images))
    assert torch.equal(converted.encode(images, "3xXL"), original(images))
    for size in ("S", "M", "L", "2xXL,1xL"):
        assert torch.equal(converted(images, size), nested(images, size))
    assert not torch.allclose(nested(images), original(images), atol=1e-2)


def test_several_submodels_at_once_come_in_order(converted, images):
    submodels = [converted.submodel(size) for size in SIZES]
    together = converted.vectors(images, submodels)
    for submodel, vectors in zip(submodels, together, strict=True):
        alone = converted.vectors(images, [submodel])
        torch.testing.assert_close(vectors, alone[0], rtol=0, atol=1e-5)
        expected = converted(images, submodel)
        found = torch.nn.functional.normalize(vectors, dim=-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_fingerprint_is_the_originals_whatever_the_nested_weights_are(converted, original):
    assert converted.fingerprint == original.fingerprint
    with torch.no_grad():
        converted.backbone.cls_token.add_(1)
    assert converted.fingerprint == original.fingerprint
    with torch.no_grad():
        converted.anchor.cls_token.add_(1)
    assert converted.fingerprint != original.fingerprint


def test_the_weights_fingerprint_is_that_of_the_nested_weights(converted, original, nested):
    assert original.weights_fingerprint == original.fingerprint
    assert converted.weights_fingerprint == nested.fingerprint != original.fingerprint
    with torch.no_grad():
        converted.backbone.cls_token.add_(1)
    assert converted.weights_fingerprint != nested.fingerprint
    assert converted.fingerprint == original.fingerprint


def test_the_anchor_is_a_copy_that_is_never_trained(converted, original, images):
    before = original(images).detach()
    with torch.no_grad():
        original.backbone.cls_token.add_(1)
    assert torch.equal(converted(images), before)
    converted.train()
    assert torch.equal(converted(images), before)
    trained = {name for name, parameter in converted.named_parameters() if parameter.requires_grad}
    assert trained == {f"backbone.{name}" for name, _ in converted.backbone.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saving_keeps_the_anchor_bit_for_bit(converted, original, images, tmp_path, dtype):
    loaded = MatViT.load(converted.save(tmp_path / "enc", dtype=dtype))
    assert torch.equal(loaded(images), original(images))
    assert isinstance(loaded, AnchoredMatViT)
    stored = original.backbone.state_dict()
    for key, value in loaded.anchor.state_dict().items():
        assert torch.equal(value, stored[key])
    assert loaded.fingerprint == original.fingerprint
    torch.testing.assert_close(loaded(images, "S"), converted(images, "S"), rtol=0, atol=5e-3)
    assert torch.equal(loaded(images, "S"), converted(images, "S")) == (dtype == torch.float32)
    stored = json.loads((tmp_path / "enc" / checkpoint.SETTINGS).read_text())["weights"]
    assert loaded.weights_fingerprint == stored


def test_an_anchor_that_fits_into_half_is_stored_in_half(original, nested, tmp_path):
    rounded = MatViT.load(original.save(tmp_path / "half", dtype=torch.float16))
    for name, dtype in (("whole", torch.float32), ("small", torch.float16)):
        model = AnchoredMatViT.join(nested, rounded)
        model.save(tmp_path / name, dtype=dtype)
        assert MatViT.load(tmp_path / name).fingerprint == rounded.fingerprint
    sizes = [(tmp_path / name / checkpoint.ANCHOR).stat().st_size for name in ("whole", "small")]
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("damaged", [checkpoint.WEIGHTS, checkpoint.ANCHOR])
def test_damage_to_either_file_is_found(converted, tmp_path, damaged):
    path = converted.save(tmp_path) / damaged
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{damaged} is damaged or was changed"):
        MatViT.load(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=f"cannot read .*{damaged}"):
        MatViT.load(tmp_path)


def test_saving_an_ordinary_encoder_over_a_converted_one_leaves_no_anchor(
    converted, nested, tmp_path
):
    converted.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["anchor"] == checkpoint.ANCHOR
    nested.save(tmp_path)
    assert "anchor" not in json.loads((tmp_path / "config.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        checkpoint.CARD, checkpoint.SETTINGS, checkpoint.WEIGHTS,
    ]  # fmt: skip
    assert MatViT.load(tmp_path).fingerprint == nested.fingerprint


def test_extraction_takes_each_size_from_its_own_weights(converted, original, images, tmp_path):
    whole, small = extract(converted), extract(converted, "S")
    assert torch.equal(whole(images), extract(original)(images))
    torch.testing.assert_close(small(images), converted(images, "S"), rtol=0, atol=1e-6)
    assert whole.fingerprint == small.fingerprint == original.fingerprint
    loaded = load_encoder(save_encoder(small, tmp_path / "small"), runtime="torch")
    assert loaded.fingerprint == original.fingerprint
    assert loaded.weights_fingerprint == small.weights_fingerprint != whole.weights_fingerprint
    assert torch.equal(loaded.encode(images), small(images))


def test_training_goes_on_from_the_nested_weights(converted, nested):
    fresh = MatViT(converted.config, converted.preprocess)
    fresh.start_from(converted)
    assert fresh.fingerprint == nested.fingerprint


def test_the_anchor_of_an_anchor_is_the_first_original(converted, original, nested, images):
    again = AnchoredMatViT.join(nested, converted)
    assert torch.equal(again(images), original(images))
    assert again.fingerprint == original.fingerprint


def test_another_shape_is_refused(nested):
    other = MatViT(replace(nested.config, reg_tokens=1), nested.preprocess, "other")
    with pytest.raises(ValueError, match="cannot serve the full size from other: its architecture"):
        AnchoredMatViT.join(nested, other)


def test_threads_use_either_set_of_weights_of_one_encoder(converted, images):
    expected = {size: converted(images, size) for size in SIZES}
    sizes = SIZES * 8
    with ThreadPoolExecutor(4) as pool:
        for size, found in zip(sizes, pool.map(lambda s: converted(images, s), sizes), strict=True):
            assert torch.equal(found, expected[size])


def test_costs_do_not_count_the_anchor(converted, original):
    for size in ("S", "XL"):
        submodel = converted.submodel(size)
        assert count_macs(converted.config, submodel) == count_macs(original.config, submodel)


def test_an_index_of_the_original_is_asked_by_the_converted_encoder(
    converted, original, nested, photo_folder, tmp_path
):
    corpus = Corpus.from_folder(photo_folder)
    index = ImageIndex.build(original, corpus, tmp_path / "photos.index")
    loaded = MatViT.load(converted.save(tmp_path / "converted"))
    retriever = Retriever(loaded, index)
    query = photo_folder / "bread" / "01.png"
    full = retriever.search(query, k=12)
    expected = Retriever(original, index).search(query, k=12)
    assert [hit.id for hit in full] == [hit.id for hit in expected]
    assert [hit.score for hit in full] == [hit.score for hit in expected]
    small = retriever.search(query, submodel="S", k=12)
    by_hand = index.embeddings[:] @ nested_vector(nested, query)
    np.testing.assert_allclose([hit.score for hit in small], np.sort(by_hand)[::-1], atol=5e-3)
    extracted = Retriever(extract(loaded, "S"), index).search(query, k=12)
    assert [hit.id for hit in extracted] == [hit.id for hit in small]
    with pytest.raises(ValueError, match="was built by encoder model 1"):
        Retriever(nested, index)


def nested_vector(nested: MatViT, query) -> np.ndarray:
    from matvit.embedding import embed

    return embed(nested, nested.preprocess.pixels(query)[None], "S")[0]
