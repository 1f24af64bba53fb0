"""Weights of timm models in files as people have them, against the model they were saved from."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from matvit.conversion.from_module import from_module
from matvit.conversion.from_timm import from_timm
from matvit.conversion.weight_files import read_weights

NAME = "vit_tiny_patch16_224"
SIZE = {"img_size": 32}


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=7, **SIZE).eval()


@pytest.fixture(scope="module")
def wanted(vit) -> str:
    return from_timm(vit).fingerprint


def found(path) -> str:
    return from_timm(NAME, weights=path, **SIZE).fingerprint


AROUND = {
    "as it is": lambda state: state,
    "a head of other classes": lambda state: {**state, "head.weight": torch.ones(3, 192)},
    "module.": lambda state: {f"module.{key}": value for key, value in state.items()},
    "state_dict": lambda state: {"epoch": 3, "state_dict": OrderedDict(state), "lr": 0.1},
    "model in state": lambda state: {"state": 1, "model": {"state_dict": state}},
    "EMA before the last": lambda state: {
        "state_dict": {key: value + 1 for key, value in state.items()},
        "state_dict_ema": state,
    },
    "averaged by torch": lambda state: {
        "n_averaged": torch.tensor(4.0),
        **{f"module.{key}": value for key, value in state.items()},
    },
    "backbone and a head beside it": lambda state: {
        **{f"backbone.{key}": value for key, value in state.items() if "head" not in key},
        "classifier.weight": torch.ones(3, 192),
    },
    "lightning": lambda state: {
        "state_dict": {f"model.backbone.{key}": value for key, value in state.items()}
        | {"model.head.weight": torch.ones(3)},
        "epoch": 1,
    },
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "half precision": lambda state: {key: value.double() for key, value in state.items()},
}


@pytest.mark.parametrize("around", AROUND)
def test_whatever_stands_around_the_tensors_is_taken_off(vit, wanted, tmp_path, around):
    torch.save(AROUND[around](vit.state_dict()), tmp_path / "weights.pt")
    assert found(tmp_path / "weights.pt") == wanted


def test_safetensors_are_read_too(vit, wanted, tmp_path):
    tensors = {f"module.{key}": value.contiguous() for key, value in vit.state_dict().items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    assert found(tmp_path / "weights.safetensors") == wanted


def test_positions_of_another_input_size_are_scaled_as_timm_does_it(vit, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "weights.pt")
    larger = from_timm(NAME, weights=tmp_path / "weights.pt", img_size=64)
    theirs = timm.create_model(NAME, img_size=64, num_classes=7)
    timm.models.load_checkpoint(theirs, str(tmp_path / "weights.pt"), weights_only=True,
                                 filter_fn=checkpoint_filter_fn)  # fmt: skip
    torch.testing.assert_close(larger.backbone.pos_embed, theirs.pos_embed, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_code_of_a_file_is_run(vit, tmp_path):
    torch.save({**vit.state_dict(), "extra": Evil()}, tmp_path / "weights.pt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Evil()))
    for name in ("weights.pt", "plain.bin"):
        with pytest.raises(ValueError, match="cannot read weights from"):
            found(tmp_path / name)


def test_what_is_missing_left_over_or_of_another_shape_is_named(vit, tmp_path):
    state = vit.state_dict()
    lost = {key: value for key, value in state.items() if key != "blocks.3.mlp.fc1.bias"}
    more = {**state, "blocks.3.mlp.fc3.bias": torch.ones(2)}
    beside = {f"backbone.{key}": value for key, value in state.items()} | {"neck.w": torch.ones(1)}
    other = {**state, "blocks.3.mlp.fc1.bias": torch.ones(5)}
    twice = {f"{who}.{key}": value for who in ("a", "b") for key, value in state.items()}
    for content, said in (
        (lost, r"blocks.3.mlp.fc1.bias is missing, wanted \(768,\)"),
        (more, "nothing takes blocks.3.mlp.fc3.bias"),
        (beside, "nothing takes neck.w"),
        (other, r"blocks.3.mlp.fc1.bias is \(5,\), wanted \(768,\)"),
        (twice, "it holds several: below 'a.', 'b.'"),
        ({"x": torch.ones(1)}, "no patch_embed.proj.weight"),
    ):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=said):
            found(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1], {"state_dict": {"model": 3}}])
def test_a_file_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_weights(tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        read_weights(tmp_path / "gone.pt")


@pytest.mark.parametrize("wrap", [
    lambda vit: vit, nn.DataParallel, lambda vit: nn.ModuleDict({"backbone": vit}),
    lambda vit: torch.optim.swa_utils.AveragedModel(vit),
    lambda vit: nn.ModuleDict({"encoder": vit, "head": nn.Linear(192, 5)}),
], ids=["itself", "DataParallel", "one child", "averaged", "with a head"])  # fmt: skip
def test_a_module_is_taken_out_of_what_is_around_it(vit, wanted, wrap):
    assert from_module(wrap(vit)).fingerprint == wanted


def test_a_module_without_such_an_encoder_is_refused():
    with pytest.raises(ValueError, match="cannot become a MatViT"):
        from_module(nn.Sequential(nn.Linear(3, 3)))


def test_weights_go_with_a_name_alone(vit, tmp_path, matvit, encoder):
    with pytest.raises(ValueError, match="weights go with the name"):
        from_timm(vit, weights=tmp_path / "weights.pt")
    torch.save(vit.state_dict(), tmp_path / "weights.pt")
    code, _, err = matvit(
        "convert", encoder, "--weights", tmp_path / "weights.pt", "--images", tmp_path,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 1
    assert "--weights go with the name of a timm model" in err
