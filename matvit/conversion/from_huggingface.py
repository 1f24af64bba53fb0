"""Image encoders in the layout of Hugging Face's transformers, read without that library.

A folder holds `config.json`, `model.safetensors` and `preprocessor_config.json`. ViT, DeiT, DINOv2
with registers or without, and the image towers of CLIP and SigLIP are Vision Transformers of the
same plain kind under other names: the names are translated. What an encoder ends with for its own
task is left behind: pooler, classification head, projection into a space of texts. The vector is
that of the class token after the last norm, or what a SigLIP tower pools.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from msgspec.structs import replace as replace_fields
from torch import Tensor
from torch.nn.functional import interpolate

from matvit.config import Activation, MatViTConfig, ratio_of
from matvit.conversion.weight_files import fitting_weights, read_weights, refuse_left
from matvit.files import read_json
from matvit.model import MatViT
from matvit.preprocess import Preprocess

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu", "silu": "silu", "swish": "silu",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Family:
    """How one kind of encoder names what all of them have.

    Attributes:
        patches: The projection of the patches, by which its tensors are found.
        tokens: Names of class token, registers and positions here, by those there.
        norms: The same of the norms outside the blocks.
        block: What stands before the tensors of a block.
        layers: Names within a block, there and here; queries, keys and values are one here.
        eps, activation: What it has unless `config.json` says otherwise.
        colours: Mean and deviation, unless `preprocessor_config.json` says otherwise.
        antialias: How it scales positions to another input size.
        scales: Names of layer scale within a block, there and here.
        pooling: The same of what pools, if that is not the class token.
    """

    patches: str
    tokens: Mapping[str, str]
    norms: Mapping[str, str]
    block: str
    layers: Mapping[str, str]
    eps: float
    activation: str
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    antialias: bool = False
    scales: Mapping[str, str] = field(default_factory=dict)
    pooling: Mapping[str, str] = field(default_factory=dict)


_VIT = _Family(
    patches="embeddings.patch_embeddings.projection",
    tokens={
        "embeddings.cls_token": "cls_token",
        "embeddings.distillation_token": "reg_token",
        "embeddings.position_embeddings": "pos_embed",
    },
    norms={"layernorm": "norm"},
    block="encoder.layer.",
    layers={
        "layernorm_before": "norm1", "layernorm_after": "norm2",
        "attention.attention.query": "q", "attention.attention.key": "k",
        "attention.attention.value": "v", "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    },
    eps=1e-12,
    activation="gelu",
    colours=_HALF,
)  # fmt: skip
_DINO = _Family(
    patches="embeddings.patch_embeddings.projection",
    tokens={
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "reg_token",
        "embeddings.position_embeddings": "pos_embed",
    },
    norms={"layernorm": "norm"},
    block="encoder.layer.",
    layers={
        "norm1": "norm1", "norm2": "norm2",
        "attention.attention.query": "q", "attention.attention.key": "k",
        "attention.attention.value": "v", "attention.output.dense": "attn.proj",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
        "mlp.weights_in": "mlp.packed", "mlp.weights_out": "mlp.fc2",
        "mlp.gate_proj": "mlp.fc1_g", "mlp.up_proj": "mlp.fc1_x", "mlp.down_proj": "mlp.fc2",
    },
    scales={"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"},
    eps=1e-6,
    activation="gelu",
    colours=_IMAGENET,
)  # fmt: skip
_TOWER = _Family(
    patches="embeddings.patch_embedding",
    tokens={
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding.weight": "pos_embed",
    },
    norms={"pre_layrnorm": "norm_pre", "post_layernorm": "norm"},
    block="encoder.layers.",
    layers={
        "layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.q_proj": "q",
        "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.out_proj": "attn.proj",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    },
    eps=1e-5,
    activation="quick_gelu",
    colours=_CLIP,
)  # fmt: skip


_POOLING = {
    "head.probe": "attn_pool.latent",
    "head.attention.out_proj.weight": "attn_pool.proj.weight",
    "head.attention.out_proj.bias": "attn_pool.proj.bias",
    "head.layernorm.weight": "attn_pool.norm.weight",
    "head.layernorm.bias": "attn_pool.norm.bias",
    "head.mlp.fc1.weight": "attn_pool.mlp.fc1.weight",
    "head.mlp.fc1.bias": "attn_pool.mlp.fc1.bias",
    "head.mlp.fc2.weight": "attn_pool.mlp.fc2.weight",
    "head.mlp.fc2.bias": "attn_pool.mlp.fc2.bias",
}
"""What a SigLIP tower pools with."""

_JOINED = ("head.attention.in_proj_weight", "head.attention.in_proj_bias")
"""Queries, keys and values of that, in one."""

_SIGLIP = replace(
    _TOWER,
    eps=1e-6, activation="gelu_pytorch_tanh", colours=_HALF,
    tokens={"embeddings.position_embedding.weight": "pos_embed"},
    norms={"post_layernorm": "norm"}, pooling=_POOLING,
)  # fmt: skip

_FAMILIES = {
    "vit": _VIT,
    "deit": replace(_VIT, colours=_IMAGENET),
    "dinov2": _DINO,
    "dinov2_with_registers": replace(_DINO, antialias=True),
    "clip": _TOWER,
    "clip_vision_model": _TOWER,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
}
"""By the `model_type` of `config.json`."""


def is_huggingface(folder: Path) -> bool:
    """Whether a folder holds a model in the layout of transformers."""
    return _has_key(folder, "model_type")


def is_timm(folder: Path) -> bool:
    """Whether a folder holds a model as timm leaves it on the hub."""
    return _has_key(folder, "architecture") and not is_huggingface(folder)


def _has_key(folder: Path, key: str) -> bool:
    path = folder / "config.json"
    return path.is_file() and key in _json(path)


def from_huggingface(folder: str | Path, *, img_size: int | None = None) -> MatViT:
    """Make a MatViT of an image encoder in the layout of transformers.

    At full size it gives what that library gives, scaled to length one.

    Args:
        folder: Where `config.json` and `model.safetensors` are; without
            `preprocessor_config.json`, images are seen as is usual for the kind of encoder.
        img_size: Side of the input; None is what images are cropped to. Positions are scaled as
            transformers scales them.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it is of a kind that cannot be represented, or something in it is missing,
            left over or of another shape; the message names it.
    """
    folder = Path(folder)
    settings = _json(folder / "config.json")
    try:
        seen = _preprocessing(folder, settings)
        weights = read_weights(folder)
        return translated(settings, weights, seen, img_size=img_size, name=folder.resolve().name)
    except ValueError as error:
        raise ValueError(f"{folder} cannot become a MatViT: {error}") from error


def translated(
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    seen: Preprocess | None = None,
    *,
    img_size: int | None = None,
    name: str = "unnamed",
) -> MatViT:
    """Make a MatViT of the settings and the tensors of a model of transformers.

    Args:
        settings: As `config.json` has them.
        weights: Tensors by their names.
        seen: How images become its input; None for what is usual for the kind of encoder.
        img_size: Side of the input; None is that of `seen`, or the one it was trained at.
        name: What to call the encoder.

    Raises:
        ValueError: As `from_huggingface` says.
    """
    family = _family(settings)
    inner = {**settings, **settings.get("vision_config", {})}
    found, _ = fitting_weights(
        weights,
        f"{family.patches}.weight",
        f"{settings.get('model_type')} encoder",
        needed=(*family.pooling, *_JOINED) if family.pooling else (),
    )
    patch = found[f"{family.patches}.weight"].shape[-1]
    tensors = _translate(family, found)
    trained = inner.get("image_size", _side(tensors["pos_embed"], tensors, patch))
    if not isinstance(trained, int):
        raise ValueError(f"its images are {trained}, not square")
    size = img_size or (seen.img_size if seen else trained)
    _place(tensors, size // patch, antialias=family.antialias)
    config = _config(family, inner, tensors, size)
    if seen is None:
        mean, std = family.colours
        seen = Preprocess(img_size=size, mean=mean, std=std)
    model = MatViT(config, replace_fields(seen, img_size=size), name)
    wanted = model.backbone.state_dict()
    for key, value in wanted.items():
        if key not in tensors or tensors[key].shape != value.shape:
            there = tuple(tensors[key].shape) if key in tensors else "missing"
            raise ValueError(f"{key} is {there}, wanted {tuple(value.shape)}")
    refuse_left(key for key in tensors if key not in wanted)
    model.backbone.load_state_dict(tensors)
    return model


def _family(settings: Mapping[str, Any]) -> _Family:
    kind = settings.get("model_type")
    if kind not in _FAMILIES:
        raise ValueError(f"it is of type {kind!r}; known: {', '.join(_FAMILIES)}")
    inner = {**settings, **settings.get("vision_config", {})}
    if inner.get("vision_use_head") is False:
        raise ValueError("it does not pool (vision_use_head is false), so it has no vector")
    return _FAMILIES[kind]


def _config(
    family: _Family, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], size: int
) -> MatViTConfig:
    """Read sizes off the tensors, and what these do not say off the settings."""
    dim, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    act = settings.get("hidden_act", family.activation)
    if act not in _ACTIVATIONS:
        raise ValueError(f"its activation is {act!r}; known: {', '.join(_ACTIVATIONS)}")
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    gated = "blocks.0.mlp.fc1_g.weight" in tensors
    return MatViTConfig(
        img_size=size,
        patch_size=patch,
        embed_dim=dim,
        depth=1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")),
        num_heads=settings.get("num_attention_heads", 12),
        mlp_ratio=ratio_of(tensors["blocks.0.mlp.fc2.weight"].shape[1], dim),
        class_token="cls_token" in tensors,
        global_pool="map" if family.pooling else "token",
        reg_tokens=registers,
        no_embed_class=tensors["pos_embed"].shape[1] == (size // patch) ** 2 and not family.pooling,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        init_values=1.0 if "blocks.0.ls1.gamma" in tensors else None,
        pre_norm="norm_pre.weight" in tensors,
        act_layer="silu" if gated else _ACTIVATIONS[act],
        gated=gated,
        norm_eps=settings.get("layer_norm_eps", family.eps),
    )


# --- names ------------------------------------------------------------------------------------


def _translate(family: _Family, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every tensor its name and shape here.

    Raises:
        ValueError: If a tensor has none.
    """
    names = {name: _name_of(family, name) for name in found}
    refuse_left(name for name, ours in names.items() if ours is None and name not in _JOINED)
    tensors = {ours: found[name] for name, ours in names.items() if ours is not None}
    _join_attention(tensors)
    for key in [key for key in tensors if ".mlp.packed." in key]:
        gate, other = tensors.pop(key).chunk(2)
        tensors |= {key.replace("packed", "fc1_g"): gate, key.replace("packed", "fc1_x"): other}
    if family.pooling:
        _split_pooling(tensors, found)
    for key in ("cls_token", "reg_token", "pos_embed"):
        if key in tensors:
            tensors[key] = tensors[key].reshape(1, -1, tensors[key].shape[-1])
    if "pos_embed" not in tensors:
        raise ValueError("it has no position embedding")
    return tensors


def _name_of(family: _Family, name: str) -> str | None:
    """What a tensor is called here; queries, keys and values have a name each for now."""
    outer, _, part = name.rpartition(".")
    norms = {family.patches: "patch_embed.proj", **family.norms}
    if outer in norms:
        return f"{norms[outer]}.{part}"
    if not name.startswith(family.block):
        return family.tokens.get(name) or family.pooling.get(name)
    number, _, inner = name.removeprefix(family.block).partition(".")
    layer = inner.rpartition(".")[0]
    ours = family.scales.get(inner) or f"{family.layers.get(layer)}.{part}"
    known = number.isdigit() and (inner in family.scales or layer in family.layers)
    return f"blocks.{int(number)}.{ours}" if known else None


def _join_attention(tensors: dict[str, Tensor]) -> None:
    """Make one matrix of those of queries, keys and values."""
    for key in [key for key in tensors if key.rpartition(".")[0].endswith(".q")]:
        block, part = key.removesuffix(f".q.{key.rpartition('.')[2]}"), key.rpartition(".")[2]
        three = [f"{block}.{name}.{part}" for name in ("q", "k", "v")]
        if missing := [name for name in three if name not in tensors]:
            raise ValueError(f"it has {key}, but no {', '.join(missing)}")
        tensors[f"{block}.attn.qkv.{part}"] = torch.cat([tensors.pop(name) for name in three])


def _split_pooling(tensors: dict[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Take queries, and keys and values, of the pooling attention apart."""
    for name in _JOINED:
        if name not in found:
            raise ValueError(f"it has no {name}")
        joined, part = found[name], name.rpartition("_")[2]
        dim = len(joined) // 3
        tensors[f"attn_pool.q.{part}"] = joined[:dim]
        tensors[f"attn_pool.kv.{part}"] = joined[dim:]


def _side(positions: Tensor, tensors: Mapping[str, Tensor], patch: int) -> int:
    """Side of the images that positions are for, in pixels."""
    count = positions.shape[1] - ("cls_token" in tensors)
    return math.isqrt(count) * patch


def _place(tensors: dict[str, Tensor], rows: int, *, antialias: bool) -> None:
    """Bring the positions to a grid of patches, as transformers does it.

    Registers that come behind the positions there have none; then the class token's is added to
    the class token itself.
    """
    positions = tensors["pos_embed"]
    prefix = int("cls_token" in tensors)
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    with_registers = math.isqrt(positions.shape[1] - prefix) ** 2 != positions.shape[1] - prefix
    prefix += registers if with_registers else 0
    count = positions.shape[1] - prefix
    side = math.isqrt(count)
    if side * side != count or rows < 1:
        raise ValueError(f"its {positions.shape[1]} positions are no square of patches")
    if side != rows:
        grid = positions[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = interpolate(
            grid, size=(rows, rows), mode="bicubic", align_corners=False, antialias=antialias
        )
        flat = grid.permute(0, 2, 3, 1).reshape(1, rows * rows, -1)
        positions = torch.cat([positions[:, :prefix], flat], dim=1)
    if registers and not with_registers:
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        positions = positions[:, 1:]
    tensors["pos_embed"] = positions.contiguous()


# --- images -----------------------------------------------------------------------------------


def _preprocessing(folder: Path, settings: Mapping[str, Any]) -> Preprocess | None:
    """Read `preprocessor_config.json`; None if there is none.

    Raises:
        ValueError: If it prescribes something that is not to be had here.
    """
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return None
    told = _json(path)
    mean, std = _family(settings).colours
    side, crop = _sides(told.get("size")), _sides(told.get("crop_size"))
    if told.get("do_resize", True) is False or side is None:
        raise ValueError(f"{path.name} does not say what images are scaled to")
    filters: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
    if (resample := told.get("resample", 3)) not in filters:
        raise ValueError(f"{path.name} scales images by filter {resample}; known: 2 and 3")
    crops = told.get("do_center_crop", crop is not None) and crop is not None
    size = crop[0] if crops and crop else side[0]
    if size > side[0]:
        raise ValueError(f"{path.name} scales images to {side[0]} px and cuts out {size}")
    return Preprocess(
        img_size=size,
        # A side alone is the shorter one; both sides give up the aspect ratio.
        fit="squash" if side[1] else "crop",
        interpolation=filters[resample],
        mean=tuple(told.get("image_mean", mean)) if told.get("do_normalize", True) else (0, 0, 0),
        std=tuple(told.get("image_std", std)) if told.get("do_normalize", True) else (1, 1, 1),
        crop_pct=size / side[0],
    )


def _sides(said: Any) -> tuple[int, bool] | None:  # noqa: ANN401 -- three ways to say it
    """Read a size: pixels, and whether both sides are meant."""
    if isinstance(said, int):
        return said, True
    if isinstance(said, Mapping):
        if isinstance(edge := said.get("shortest_edge"), int):
            return edge, False
        if isinstance(height := said.get("height"), int) and said.get("width") == height:
            return height, True
    if said is None:
        return None
    raise ValueError(f"its images are of size {said}, not square")


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, dict[str, Any], "the settings of a model of transformers")
