"""ONNX Runtime gives what torch gives: oracle is the torch encoder of the same checkpoint."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import onnx
import pytest
import torch

from matvit.config import MatViTConfig
from matvit.cost import count_macs
from matvit.embedding import ContinuedEmbedding, embed, embed_each
from matvit.extraction import extract
from matvit.loading import load_encoder, save_encoder
from matvit.model import AnchoredMatViT, MatViT

SHAPE = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
MIXES = ["S", "M", "L", "XL", "1xS,1xXL,1xM", "3x5"]
KINDS = {
    "class token": {},
    "pooled": {"global_pool": "avg"},
    "pooled without class token": {"global_pool": "avg", "class_token": False},
    "pooled, normalised before": {"global_pool": "avg", "fc_norm": False},
    "class token, normalised after": {"fc_norm": True},
    "layer scale": {"init_values": 0.3},
    "registers": {"reg_tokens": 3},
    "registers, no position for the class": {"reg_tokens": 2, "no_embed_class": True},
    "registers, pooled": {"reg_tokens": 2, "global_pool": "avg"},
    "norm before the blocks": {"pre_norm": True, "norm_eps": 1e-5, "act_layer": "quick_gelu"},
    "normalised queries and keys": {"qk_norm": True},
    "no bias of queries": {"qkv_bias": False},
    "gelu by tanh": {"act_layer": "gelu_tanh"},
    "a head that takes no part": {"num_classes": 5},
    "any size of images": {"dynamic_img_size": True},
}


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def random_model(seed=0, **settings):
    """A model in which every parameter, biases and norms too, makes a difference."""
    torch.manual_seed(seed)
    model = MatViT(MatViTConfig(**(SHAPE | settings)), name="random")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_encoder(random_model(), tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def by_torch(folder):
    return load_encoder(folder, runtime="torch")


@pytest.fixture
def by_onnx(folder):
    return load_encoder(folder, runtime="onnx")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_gives_torchs_vectors(kind, tmp_path):
    model = random_model(**KINDS[kind])
    encoder = load_encoder(save_encoder(model, tmp_path), runtime="onnx")
    assert encoder.fingerprint == model.fingerprint
    assert encoder.weights_fingerprint == model.weights_fingerprint
    for mix in MIXES:
        expected = embed(model, pixels(5), mix, precision="float32")
        np.testing.assert_allclose(embed(encoder, pixels(5), mix), expected, atol=1e-5)


def test_submodels_that_run_together_or_go_on_give_the_same(by_torch, by_onnx):
    submodels = [by_onnx.submodel(mix) for mix in MIXES]
    for submodel, vectors in embed_each(by_onnx, pixels(70), submodels, batch_size=40):
        expected = embed(by_torch, pixels(70), submodel, precision="float32")
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_merged_as_torch_merges_them(kind, tmp_path):
    model = random_model(**KINDS[kind], img_size=32)
    encoder = load_encoder(save_encoder(model, tmp_path), runtime="onnx")
    images = np.random.default_rng(3).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    submodels = [encoder.submodel(text) for text in ("S~", "L~4,3,1", "1xS,2xXL~0,8,0", "M~0,0,5")]
    together = dict(embed_each(encoder, images, submodels))
    for submodel in submodels:
        expected = embed(model, images, submodel, precision="float32")
        for vectors in (embed(encoder, images, submodel), together[submodel]):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
    went = ContinuedEmbedding(encoder, images)
    went.embed("3xS~4,3,1")
    expected = embed(model, images[:2], "1xS,2xXL~4,3,1", precision="float32")
    np.testing.assert_allclose(
        went.take(np.array([0, 1])).embed("1xS,2xXL~4,3,1"), expected, atol=1e-5
    )


@pytest.mark.parametrize(
    ("first", "second"), list(permutations(["S", "2xS,1xXL", "XL", "S~1,0,1"], 2))
)
def test_going_on_costs_only_what_is_new(by_torch, by_onnx, first, second):
    went, expected = (
        ContinuedEmbedding(each, pixels(4), precision="float32") for each in (by_onnx, by_torch)
    )
    for submodel in (first, second):
        np.testing.assert_allclose(went.embed(submodel), expected.embed(submodel), atol=1e-5)
    assert went.macs == expected.macs
    some = went.take(np.array([3, 0]))
    np.testing.assert_array_equal(some.embed(first), went.embed(first)[[3, 0]])


def test_int8_shares_nothing_with_float32(by_onnx):
    continued = ContinuedEmbedding(by_onnx, pixels(2))
    continued.embed("S")
    assert continued.added_macs("S:int8") == count_macs(by_onnx.config, by_onnx.submodel("S"))
    np.testing.assert_allclose(
        continued.embed("S:int8"), embed(by_onnx, pixels(2), "S:int8"), atol=1e-5
    )


def test_a_converted_encoder_runs_its_full_size_from_the_original(tmp_path):
    model = AnchoredMatViT.join(random_model(1), random_model(2))
    encoder = load_encoder(save_encoder(model, tmp_path), runtime="onnx")
    assert encoder.fingerprint == model.fingerprint == random_model(2).fingerprint
    for mix in MIXES:
        expected = embed(model, pixels(3), mix, precision="float32")
        np.testing.assert_allclose(embed(encoder, pixels(3), mix), expected, atol=1e-5)
    full, near = encoder.submodel("XL"), encoder.submodel("2xXL,1xL")
    assert encoder.weights_of(full) != encoder.weights_of(near)


def test_an_extracted_submodel_answers_for_its_one_size(by_torch, tmp_path):
    small = extract(by_torch, "2xS,1xM")
    encoder = load_encoder(save_encoder(small, tmp_path), runtime="onnx")
    assert not encoder.is_whole
    assert encoder.fingerprint == by_torch.fingerprint
    expected = embed(by_torch, pixels(3), "2xS,1xM", precision="float32")
    np.testing.assert_allclose(embed(encoder, pixels(3)), expected, atol=1e-5)
    with pytest.raises(ValueError, match="extracted submodel 2xS,1xM and holds no XL"):
        embed(encoder, pixels(3), "XL")


def test_float16_weights_are_read_as_torch_reads_them(by_torch, tmp_path):
    save_encoder(by_torch, tmp_path, dtype=torch.float16)
    expected, encoder = (load_encoder(tmp_path, runtime=each) for each in ("torch", "onnx"))
    assert encoder.fingerprint == expected.fingerprint != by_torch.fingerprint
    np.testing.assert_allclose(embed(encoder, pixels(3)), embed(expected, pixels(3)), atol=1e-5)


def test_on_a_cpu_auto_is_onnx_runtime(folder, by_onnx):
    encoder = load_encoder(folder, threads=3)
    assert encoder.runtime.library == "onnxruntime"
    assert encoder.runtime.place == "cpu, 3 threads"
    with pytest.raises(ValueError, match="runtime must be auto, torch or onnx, got 'jax'"):
        load_encoder(folder, runtime="jax")
    with pytest.raises(ValueError, match="runtime onnx computes on cpu, not cuda"):
        load_encoder(folder, runtime="onnx", device="cuda")
    with pytest.raises(ValueError, match="computes in float32, got precision 'bfloat16'"):
        embed(by_onnx, pixels(1), precision="bfloat16")
    with pytest.raises(ValueError, match="takes 16x16 images, got 8x8"):
        embed(by_onnx, pixels(1)[:, :8, :8])


def test_sessions_are_made_when_first_asked_and_no_more_kept_than_fit(folder, monkeypatch):
    monkeypatch.setattr("matvit.onnx_encoder._ALWAYS_KEPT", 0)
    by_onnx = load_encoder(folder, runtime="onnx")
    assert len(by_onnx._sessions) == 0
    embed(by_onnx, pixels(1), "S")
    assert len(by_onnx._sessions) == 1
    for width in range(1, 30):
        embed(by_onnx, pixels(1), f"3x{width}")
    assert by_onnx._sessions.currsize <= by_onnx._sessions.maxsize
    assert 1 < len(by_onnx._sessions) < 30


def test_8_bits_stay_near_and_torch_says_who_computes_in_them(by_torch, by_onnx):
    for size in ("S", "XL"):
        exact, rounded = embed(by_onnx, pixels(8), size), embed(by_onnx, pixels(8), f"{size}:int8")
        assert 0.98 < (exact * rounded).sum(axis=1).min() < 0.999999
    with pytest.raises(ValueError, match="S:int8 needs ONNX Runtime; load the encoder with"):
        embed(by_torch, pixels(1), "S:int8")


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize("mix", ["S", "XL:int8", "S~", "S~1,1,0:int8"])
def test_a_graph_is_valid_onnx(by_onnx, mix, opset):
    graph = by_onnx.graph(by_onnx.submodel(mix), opset=opset)
    onnx.checker.check_model(graph, full_check=True)
    assert graph.opset_import[0].version == opset
    assert [each.name for each in graph.graph.input] == ["images"]
    assert [each.name for each in graph.graph.output] == ["vectors"]
