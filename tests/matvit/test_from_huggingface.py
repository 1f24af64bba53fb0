"""Folders of transformers, against what transformers itself gave for them.

`huggingface/*` were written by `save_pretrained` of transformers 5.24: random weights of deviation
0.2, hidden size 16, 2 blocks. `huggingface/expected.npz` has images and what that library gives
for them: the class token after the last norm, or what the tower pools.

Mutants to catch: queries, keys and values joined in another order; registers before the positions;
positions scaled with antialiasing where transformers does without, or the other way round.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from matvit.conversion.from_huggingface import from_huggingface, is_huggingface, is_timm
from matvit.conversion.from_module import from_module
from matvit.cost import count_macs, count_params
from matvit.extraction import extract
from matvit.loading import load_encoder
from matvit.model import MatViT

FOLDERS = Path(__file__).parent / "huggingface"
EXPECTED = np.load(FOLDERS / "expected.npz")
CASES = sorted(key.removeprefix("x_") for key in EXPECTED if key.startswith("x_"))
FLOAT32 = 2e-6


def converted(case: str) -> MatViT:
    name, size = case.rsplit("_", 1)
    return from_huggingface(FOLDERS / name, img_size=int(size))


def expected(case: str) -> torch.Tensor:
    return normalize(torch.from_numpy(EXPECTED[f"y_{case}"]), dim=-1)


@pytest.mark.parametrize("case", CASES)
def test_at_full_size_it_gives_what_transformers_gives(case):
    images = torch.from_numpy(EXPECTED[f"x_{case}"])
    with torch.inference_mode():
        found = converted(case)(images)
    torch.testing.assert_close(found, expected(case), rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("case", CASES)
def test_in_bfloat16_too_as_far_as_that_goes(case):
    images = torch.from_numpy(EXPECTED[f"x_{case}"])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = converted(case)(images).float()
    assert (normalize(found, dim=-1) * expected(case)).sum(dim=1).min() > 0.99


@pytest.mark.parametrize("case", CASES)
def test_onnx_gives_the_same_at_full_size_and_at_a_mix(case, tmp_path):
    model = converted(case)
    model.save(tmp_path / "encoder")
    encoder = load_encoder(tmp_path / "encoder", runtime="onnx")
    size = model.config.img_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    for spec in ("XL", "1xS,1xL"):
        submodel = model.submodel(spec)
        found = encoder.embed_pixels(pixels, [submodel], "float32")[0]
        wanted = model.embed_pixels(pixels, [submodel], "float32")[0]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["siglip_vision_model_16", "dinov2_swiglu_16"])
def test_a_submodel_of_what_pools_or_is_gated_is_a_plain_timm_model_of_the_counted_size(case):
    model = converted(case)
    images = torch.from_numpy(EXPECTED[f"x_{case}"])
    for spec in ("S", "XL"):
        small = extract(model, spec)
        with torch.inference_mode():
            torch.testing.assert_close(small(images), model(images, spec), rtol=0, atol=FLOAT32)
        count = sum(parameter.numel() for parameter in small.parameters())
        assert count == count_params(model.config, model.submodel(spec))


@pytest.mark.parametrize("case", ["siglip_vision_model_16", "dinov2_swiglu_16"])
def test_the_cost_of_pooling_and_of_gates_is_what_torch_counts(case):
    model = converted(case)
    for spec in ("S", "XL"):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 16, 16), spec)
        assert counter.get_total_flops() == 2 * count_macs(model.config, model.submodel(spec))


def copied(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDERS / name, tmp_path / name))


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ({"size": 16}, ("squash", 16, 1.0)),
        ({"size": {"height": 16, "width": 16}}, ("squash", 16, 1.0)),
        ({"size": {"shortest_edge": 18}, "do_center_crop": True,
          "crop_size": {"height": 16, "width": 16}}, ("crop", 16, 16 / 18)),
        ({"size": {"height": 20, "width": 20}, "do_center_crop": True, "crop_size": 16,
          "resample": 2}, ("squash", 16, 0.8)),
        ({"size": {"shortest_edge": 16}}, ("crop", 16, 1.0)),
    ],
)  # fmt: skip
def test_images_are_prepared_as_its_settings_say(tmp_path, told, seen):
    folder = copied("vit", tmp_path)
    told = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], **told}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    found = from_huggingface(folder).preprocess
    assert (found.fit, found.img_size, found.crop_pct) == seen
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert found.interpolation == ("bilinear" if told.get("resample") == 2 else "bicubic")


def test_without_settings_images_are_prepared_as_is_usual_for_the_kind():
    assert from_huggingface(FOLDERS / "siglip_vision_model").preprocess.mean == (0.5, 0.5, 0.5)
    assert from_huggingface(FOLDERS / "dinov2").preprocess.mean == (0.485, 0.456, 0.406)
    assert from_huggingface(FOLDERS / "clip").preprocess.std[0] == 0.26862954


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"size": {"height": 16, "width": 20}}, "not square"),
        ({"size": 16, "resample": 1}, "by filter 1"),
        ({"size": 16, "do_resize": False}, "does not say what images are scaled to"),
        ({"size": 12, "crop_size": 16}, "scales images to 12 px and cuts out 16"),
    ],
)
def test_preparations_that_are_not_to_be_had_are_refused(tmp_path, told, said):
    folder = copied("vit", tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=said):
        from_huggingface(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "swin"}, "it is of type 'swin'; known: vit, deit"),
        ({"hidden_act": "relu"}, "its activation is 'relu'"),
        ({"num_attention_heads": 3}, "multiple of num_heads"),
    ],
)
def test_settings_that_cannot_be_represented_are_named(tmp_path, change, said):
    folder = copied("vit", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(ValueError, match=f"vit cannot become a MatViT: {said}|{said}"):
        from_huggingface(folder)


def test_a_tower_that_does_not_pool_is_refused(tmp_path):
    folder = copied("siglip_vision_model", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "vision_use_head": False}))
    with pytest.raises(ValueError, match="does not pool"):
        from_huggingface(folder)


@pytest.mark.parametrize("name", ["vit", "clip", "siglip_vision_model"])
def test_a_tensor_that_is_missing_or_left_over_is_named(tmp_path, name):
    folder = copied(name, tmp_path)
    whole = load_file(folder / "model.safetensors")
    inner = [key for key in whole if ".1." in key and "text" not in key]
    for key in inner:
        save_file({k: v for k, v in whole.items() if k != key}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=r"missing|but no|it has no"):
            from_huggingface(folder)
    more = {**whole, inner[0].replace("weight", "odd").replace("bias", "odd"): torch.ones(1)}
    save_file(more, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"nothing takes .*odd"):
        from_huggingface(folder)


def test_weights_in_parts_of_16_bits_are_read_by_their_index(tmp_path):
    folder = copied("vit", tmp_path)
    whole = {k: v.bfloat16() for k, v in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    parts = {f"part-{part}.safetensors": names[part::2] for part in range(2)}
    for part, inside in parts.items():
        save_file({name: whole[name] for name in inside}, folder / part)
    places = {name: part for part, inside in parts.items() for name in inside}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    weight = from_huggingface(folder).backbone.patch_embed.proj.weight
    wanted = whole["vit.embeddings.patch_embeddings.projection.weight"].float()
    torch.testing.assert_close(weight, wanted, rtol=0, atol=0)
    index.write_text(json.dumps({"weight_map": {"a": "../vit/part-0.safetensors"}}))
    with pytest.raises(ValueError, match="names a file elsewhere"):
        from_huggingface(folder)


def test_folders_are_told_apart(tmp_path):
    assert is_huggingface(FOLDERS / "vit")
    ours = converted("vit_16").save(tmp_path / "ours")
    assert not is_huggingface(ours)
    assert not is_timm(ours)
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    assert is_timm(tmp_path)
    assert not is_huggingface(tmp_path / "gone")


class Settings:
    """What models of transformers carry along."""

    def __init__(self, values: dict) -> None:
        self.model_type = values["model_type"]
        self._values = values

    def to_dict(self) -> dict:
        return self._values


class Foreign(nn.Module):
    """A module with the tensors and the settings of a model of transformers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.config = Settings(json.loads((FOLDERS / name / "config.json").read_text()))
        for key, value in load_file(FOLDERS / name / "model.safetensors").items():
            place: nn.Module = self
            *outer, last = key.split(".")
            for word in outer:
                if word not in dict(place.named_children()):
                    place.add_module(word, nn.Module())
                place = place.get_submodule(word)
            place.register_parameter(last, nn.Parameter(value))


@pytest.mark.parametrize("around", ["nothing", "DataParallel", "a head"])
def test_a_module_of_transformers_is_taken_as_its_folder_is(around):
    module: nn.Module = Foreign("dinov2")
    if around == "DataParallel":
        module = nn.DataParallel(module)
    elif around == "a head":
        module = nn.ModuleDict({"backbone": module, "head": nn.Linear(16, 3)})
    found = from_module(module)
    assert found.fingerprint == from_huggingface(FOLDERS / "dinov2").fingerprint


def test_the_command_converts_a_folder_of_transformers_and_its_index_stays(matvit, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
            photos / f"{number:02}.png"
        )
    original = from_huggingface(FOLDERS / "clip").save(tmp_path / "original")
    matvit("index", "build", photos, "--out", tmp_path / "index", "--encoder", original)
    code, _, err = matvit(
        "convert", FOLDERS / "clip", "--images", photos, "--out", tmp_path / "elastic",
        "--no-training", "--least-squares",
    )  # fmt: skip
    assert code == 0, err
    answers = [
        matvit("search", tmp_path / "index", photos / "07.png", "--encoder", each, "--json")
        for each in (original, tmp_path / "elastic")
    ]
    hits = [json.loads(out)["hits"] for _, out, _ in answers]
    assert hits[0] == hits[1]
    assert hits[0][0]["path"] == "07.png"
