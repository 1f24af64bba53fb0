"""timm's Vision Transformers as MatViTs, against timm itself."""

from __future__ import annotations

import http.server
import socket
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants as hub
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.layers import (
    ConvMlp,
    GELUTanh,
    GluMlp,
    LayerNorm,
    QuickGELU,
    RmsNorm,
    SwiGLU,
    SwiGLUPacked,
)
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import nn
from torch.nn.functional import normalize

from matvit.conversion.from_timm import config_of, from_timm, preprocess_of
from matvit.model import MatViT
from matvit.preprocess import Preprocess

module = sys.modules["matvit.conversion.from_timm"]


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch):
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")


TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
VARIANTS = {
    "imagenet": {"num_classes": 5},
    "no head": {"num_classes": 0},
    "average": {"global_pool": "avg", "class_token": False},
    "average of patches beside a class token": {"global_pool": "avg"},
    "average after the norm": {"global_pool": "avg", "fc_norm": False},
    "class token before the norm": {"fc_norm": True},
    "dinov2 with registers": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
    "deit3": {"no_embed_class": True, "init_values": 1e-6},
    "clip": {"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5)},
    "clip of torch's own norm": {"pre_norm": True, "norm_layer": nn.LayerNorm},
    "clip as it was trained": {
        "pre_norm": True,
        "act_layer": QuickGELU,
        "norm_layer": nn.LayerNorm,
    },
    "siglip": {"global_pool": "avg", "act_layer": GELUTanh, "class_token": False, "fc_norm": False},
    "siglip with its pooling": {
        "global_pool": "map",
        "act_layer": GELUTanh,
        "class_token": False,
    },
    "gated": {"mlp_layer": SwiGLU, "act_layer": nn.SiLU},
    "gated, packed": {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU},
    "gated by the second half": {"mlp_layer": GluMlp},
    "pooling beside a class token": {"global_pool": "map"},
    "gelu by approximation": {"act_layer": partial(nn.GELU, approximate="tanh")},
    "normed queries and keys": {"qk_norm": True},
    "no bias in attention": {"qkv_bias": False},
    "uneven width": {"embed_dim": 24, "mlp_ratio": 88 / 24, "num_heads": 3},
    "any size": {"dynamic_img_size": True},
    "dropout": {
        "drop_rate": 0.5,
        "proj_drop_rate": 0.5,
        "drop_path_rate": 0.5,
        "patch_drop_rate": 0.5,
    },
}
REAL = [
    "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224",
    "vit_medium_patch16_clip_224", "vit_base_patch32_clip_quickgelu_224",
    "vit_wee_patch16_reg1_gap_256", "vit_base_patch32_siglip_gap_256", "flexivit_small",
]  # fmt: skip


def build(**changes) -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(**{**TINY, **changes}).eval()
    with torch.no_grad():  # timm starts biases at zero and scales at one: errors would hide
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vit


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_full_size_gives_timms_vectors_bit_for_bit(variant):
    vit = build(**VARIANTS[variant])
    model = from_timm(vit)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pooled = vit.forward_head(vit.forward_features(images), pre_logits=True)
        found, wanted = model(images), normalize(pooled, dim=-1)
    if isinstance(vit.blocks[0].mlp, GluMlp):  # one product there is two here: other last bits
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        return
    assert torch.equal(found, wanted)
    stored = vit.state_dict()
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, stored[key])


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_taken_over_survives_saving(variant, tmp_path):
    model = from_timm(build(**VARIANTS[variant]))
    loaded = MatViT.load(model.save(tmp_path / "enc"))
    assert loaded.config == model.config
    assert (
        loaded.fingerprint == model.fingerprint == from_timm(build(**VARIANTS[variant])).fingerprint
    )


@pytest.mark.parametrize("name", REAL)
def test_known_encoders_can_be_represented(name):
    with torch.device("meta"):  # shapes without memory
        vit = timm.create_model(name, pretrained=False, weight_init="skip")
    config = config_of(vit)
    assert (config.embed_dim, config.depth) == (vit.embed_dim, len(vit.blocks))
    assert config.hidden_dim == vit.blocks[0].mlp.fc1.out_features
    assert config.tokens() == vit.patch_embed.num_patches + vit.num_prefix_tokens
    assert preprocess_of(vit).img_size == config.img_size


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3"])
def test_encoders_with_rotary_positions_are_refused_by_name(name):
    with torch.device("meta"):
        vit = timm.create_model(name, pretrained=False)
    with pytest.raises(ValueError, match=f"^{name}.* it is a Eva, whose blocks .*RoPE"):
        config_of(vit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_layer": ConvMlp}, "its feed-forward networks are ConvMlp"),
        (
            {"mlp_layer": SwiGLU, "scale_mlp_norm": True},
            "blocks.0.mlp.norm is LayerNorm, only None can be",
        ),
        (
            {"mlp_layer": SwiGLUPacked, "scale_mlp_norm": True},
            "its feed-forward networks are GluMlp",
        ),
        ({"block_fn": ResPostBlock}, "its blocks are ResPostBlock"),
        ({"global_pool": "max"}, "must be 'token', 'avg' or 'map', got 'max'"),
        ({"act_layer": nn.ReLU}, "act_layer must be one of .* got 'ReLU'"),
        ({"norm_layer": RmsNorm}, "blocks.0.norm1 is RmsNorm, only LayerNorm can be"),
        ({"final_norm": False}, "norm is None, only LayerNorm can be"),
        ({"scale_mlp_norm": True}, "blocks.0.mlp.norm is LayerNorm, only None can be"),
        ({"proj_bias": False}, r"bias is None, only \(16,\) can be"),
        ({"pos_embed": "none"}, "pos_embed is None"),
        ({"in_chans": 1}, "in_chans is 1, only 3 can be"),
        ({"img_size": (16, 24)}, r"images \(16, 24\) or patches \(8, 8\) are not square"),
        (
            {"img_size": None, "pos_embed": "none", "no_embed_class": True},
            "it has no input size of its own",
        ),
        ({"depth": 0}, "it has no blocks"),
        ({"img_size": 20}, "must be a multiple of patch_size 8, got 20"),
        ({"embed_norm_layer": LayerNorm}, "patch_embed.norm is LayerNorm, only None can be"),
    ],
)
def test_what_cannot_be_represented_is_refused(change, message):
    with pytest.raises(ValueError, match=f"^VisionTransformer cannot become a MatViT: .*{message}"):
        from_timm(build(**change))


def test_one_odd_layer_among_many_is_found():
    vit = build()
    vit.blocks[1].norm2.eps = 1e-3
    with pytest.raises(ValueError, match="blocks.1.norm2.eps is 0.001, only 1e-06 can be"):
        from_timm(vit)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="it is a VisionTransformerDistilled"):
        from_timm("deit_tiny_distilled_patch16_224", pretrained=False)
    with pytest.raises(ValueError, match="Linear cannot become a MatViT: it is a Linear"):
        from_timm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="weights that are not float32; call float"):
        from_timm(build().half())


def test_a_forward_pass_that_was_changed_is_noticed(monkeypatch):
    vit = build()
    monkeypatch.setattr(
        vit, "forward_features", lambda x: VisionTransformer.forward_features(vit, -x)
    )
    with pytest.raises(ValueError, match="computes something else than its settings say"):
        from_timm(vit)
    training = build(proj_drop_rate=0.5).train()
    assert from_timm(training).fingerprint == from_timm(build()).fingerprint
    assert training.training


def test_a_name_stands_for_pretrained_weights(monkeypatch):
    asked = []

    def create_model(name, **options):
        asked.append((name, options))
        vit = build()
        vit.pretrained_cfg = {"architecture": "vit_tiny_patch16_224", "tag": "augreg"}
        return vit

    monkeypatch.setattr(timm, "create_model", create_model)
    assert from_timm("vit_tiny_patch16_224").name == "vit_tiny_patch16_224.augreg"
    from_timm("hf-hub:somebody/something", img_size=16)
    assert asked == [
        ("vit_tiny_patch16_224", {"pretrained": True}),
        ("hf-hub:somebody/something", {"pretrained": True, "img_size": 16}),
    ]


def test_a_name_without_its_weights_does_not_claim_them():
    assert timm.create_model("test_vit").pretrained_cfg["tag"]
    assert from_timm("test_vit", pretrained=False).name == "test_vit"


def test_names_without_weights_and_networks_that_fail_are_one_clear_error(monkeypatch):
    with pytest.raises(ValueError, match="no pretrained weights for 'vit_small_patch16_36x1_224'"):
        from_timm("vit_small_patch16_36x1_224")  # timm would go on with random ones
    with pytest.raises(ValueError, match=r"cannot load 'vit_huge': Unknown model \(vit_huge\)"):
        from_timm("vit_huge")

    def offline(name, **options):
        assert hub.HF_HUB_OFFLINE  # or it would be tried again for minutes
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match="cannot load 'vit_tiny_patch16_224': no route to host"):
        from_timm("vit_tiny_patch16_224")
    assert not hub.HF_HUB_OFFLINE


def test_without_a_network_weights_by_name_end_within_seconds(monkeypatch, tmp_path):
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(module, "_PATIENCE_S", 0.3)
        begun = time.monotonic()
        with pytest.raises(ValueError, match="does not answer; load the model once where it does"):
            from_timm("vit_tiny_patch16_224")
        assert time.monotonic() - begun < 15


def test_server_that_refuses_is_an_answer(monkeypatch):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert module._answers(f"http://127.0.0.1:{server.server_port}")
    assert not module._answers("no address")


def test_preprocessing_follows_the_model(monkeypatch):
    vit = build(img_size=64)
    assert preprocess_of(vit) == Preprocess(img_size=64)
    clip = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 1.0}
    vit.pretrained_cfg = {**clip, "interpolation": "bilinear", "crop_mode": "squash"}
    assert preprocess_of(vit) == Preprocess(
        img_size=64, fit="squash", interpolation="bilinear", mean=clip["mean"], std=clip["std"]
    )
    vit.pretrained_cfg = {"crop_mode": "border"}
    with pytest.raises(ValueError, match="cropped as 'border' and scaled as 'bicubic'; give a pre"):
        from_timm(vit)
    own = Preprocess(img_size=64, fit="squash")
    assert from_timm(vit, preprocess=own).preprocess == own


@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875])
def test_pixels_are_nearly_timms(crop_pct):
    vit = build(img_size=56)
    vit.pretrained_cfg = {"crop_pct": crop_pct, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    y, x = np.mgrid[:200, :400]  # sides of which timm cuts off as much left as right
    picture = np.stack([x * 0.6, y * 1.2, 127 + 100 * np.sin(x / 20)], axis=-1)
    image = Image.fromarray(picture.astype(np.uint8))
    transform = create_transform(
        **{**resolve_data_config({}, model=vit), "input_size": (3, 56, 56)}
    )
    expected = transform(image).permute(1, 2, 0).numpy() * 255
    difference = np.abs(preprocess_of(vit).pixels(image) - expected)
    assert difference.mean() < 0.7  # levels of 255; another crop is several off
    whole = Preprocess(img_size=56, crop_pct=0.95).pixels(image)
    assert np.abs(whole - expected).mean() > 1.5
