from __future__ import annotations

import pytest

from matvit.config import MatViTConfig

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def test_round_trip_through_json_values():
    config = MatViTConfig(**SIZES, reg_tokens=3, init_values=1e-5)
    assert MatViTConfig.from_dict(config.to_dict()) == config


def test_later_settings_are_written_only_where_they_change_something():
    assert not {"act_layer", "norm_eps"} & set(MatViTConfig(**SIZES).to_dict())
    config = MatViTConfig(**SIZES, act_layer="quick_gelu", norm_eps=1e-5)
    assert MatViTConfig.from_dict(config.to_dict()) == config != MatViTConfig(**SIZES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"img_size": 20}, "img_size must be a multiple of patch_size 8, got 20"),
        ({"num_heads": 3}, "embed_dim must be a multiple of num_heads 3, got 16"),
        ({"mlp_ratio": 0.25}, "multiple of 8.*got 4"),
        ({"mlp_ratio": 0.8}, "multiple of 8.*got 12"),
        ({"global_pool": "max"}, "global_pool must be 'token', 'avg' or 'map', got 'max'"),
        ({"class_token": False}, "reads the class token"),
        ({"reg_tokens": -1}, "cannot be negative"),
        ({"act_layer": "relu"}, "one of gelu, gelu_tanh, quick_gelu, silu, got 'relu'"),
        ({"norm_eps": 0}, "norm_eps must be above 0, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MatViTConfig(**{**SIZES, **change})


def test_unknown_and_missing_keys_are_refused():
    with pytest.raises(ValueError, match="settings of a model: .* unknown field `widht`"):
        MatViTConfig.from_dict({**SIZES, "widht": 3})
    with pytest.raises(ValueError, match="settings of a model: .* missing required field `depth`"):
        MatViTConfig.from_dict({k: v for k, v in SIZES.items() if k != "depth"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 2.0}, "Expected `int`, got `float` - at `\\$.depth`"),
        ({"depth": 1 << 20, "num_heads": 1}, "Expected `int` <= 4096"),
        ({"img_size": 1 << 20}, "Expected `int` <= 16384"),
        ({"qkv_bias": 1}, "Expected `bool`, got `int`"),
        ({"global_pool": "max"}, "Invalid enum value 'max'"),
        ({"num_heads": 3}, "embed_dim must be a multiple of num_heads 3, got 16"),
    ],
)
def test_stored_settings_of_another_kind_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MatViTConfig.from_dict({**SIZES, **change})


def test_integers_stay_integers_since_the_fingerprint_tells_them_from_floats():
    whole = MatViTConfig.from_dict({**SIZES, "mlp_ratio": 4, "init_values": 1})
    assert isinstance(whole.mlp_ratio, int)
    assert isinstance(whole.init_values, int)


def test_tokens_count_patches_and_prefix():
    config = MatViTConfig(**SIZES, reg_tokens=2)
    assert config.tokens() == 4 + 3
    assert config.tokens(32) == 16 + 3
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        config.tokens(12)
