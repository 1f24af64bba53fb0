"""Any plain Vision Transformer of timm's as a MatViT that gives the same vectors.

Plain means: timm's own `VisionTransformer` of ordinary blocks, each with self-attention and a
feed-forward network of two layers, or a gated one. That covers the ImageNet, DeiT, DINO, DINOv2,
CLIP and SigLIP encoders. What cannot be represented is refused, never approximated.
"""

from __future__ import annotations

import copy
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Thread
from typing import Any, Literal, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
import torch
from huggingface_hub import constants as hub
from msgspec.structs import replace
from timm.data.config import resolve_data_config
from timm.layers.activations import GELU
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.layers.patch_dropout import PatchDropout
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as timm_names
from torch import nn
from torch.nn.functional import normalize

from matvit.config import Activation, MatViTConfig, ratio_of
from matvit.conversion.weight_files import (
    fitting_weights,
    is_beside,
    read_weights,
    refuse_left,
)
from matvit.identity import without_head
from matvit.model import MatViT
from matvit.nested import ACTIVATIONS, timm_arguments
from matvit.preprocess import Preprocess

_INACTIVE = (nn.Identity, nn.Dropout, DropPath, PatchDropout)
"""Modules that pass everything through when an encoder is not being trained."""

_WITHOUT_EFFECT = {
    "training", "fused_attn", "grad_checkpointing", "num_classes", "init_values", "inplace",
    "weight_init_mode", "fix_init", "strict_img_size", "approximate",
}  # fmt: skip
"""Attributes that do not decide the vectors, or are compared in other words."""

_SAME_VECTORS = 1e-4

_PATIENCE_S = 5.0
"""Seconds within which a server says something, or there is no network."""


def from_timm(
    source: str | nn.Module,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    img_size: int | None = None,
    preprocess: Preprocess | None = None,
) -> MatViT:
    """Make a MatViT with the weights of a timm Vision Transformer.

    At full size it gives what `forward_head(forward_features(x), pre_logits=True)` gives, scaled
    to length one. The classification head, or a CLIP encoder's projection, is left behind.

    Args:
        source: Name, as `timm.create_model` takes it, or a model.
        pretrained: Whether a name stands for trained weights, fetched over the network unless
            timm has them already.
        weights: File with the weights of a model that is named, instead of those: see
            `read_weights`. Names may begin with `module.` or the like, averaged weights (EMA) come
            first, and heads of any kind are left behind.
        img_size: Side of the input of a model that is named; None is the one it was trained at.
            At another one timm resamples the position embedding.
        preprocess: How images become its input; None follows the model's `pretrained_cfg`, or
            ImageNet's mean and deviation if it has none.

    Raises:
        ValueError: If there is no such model, it has no pretrained weights, or it cannot be
            represented; the message says why.
    """
    if weights is not None and not isinstance(source, str):
        raise ValueError("weights go with the name of a timm model; this one has its own")
    pretrained = pretrained and weights is None
    vit = create_timm(source, pretrained, img_size) if isinstance(source, str) else source
    if weights is not None:
        _load(vit, Path(weights))
    if isinstance(vit, VisionTransformer):
        vit = _unpacked(vit)
    config = config_of(vit)
    assert isinstance(vit, VisionTransformer)
    if {p.dtype for p in vit.parameters()} != {torch.float32}:
        raise ValueError(f"{_name(vit)} has weights that are not float32; call float() on it first")
    is_untrained = isinstance(source, str) and not pretrained
    name = _name(vit).partition(".")[0] if is_untrained else _name(vit)  # no tag of weights
    model = MatViT(config, preprocess or preprocess_of(vit), name)
    model.backbone.load_state_dict(without_head(vit.state_dict()))
    model.to(next(vit.parameters()).device)
    _check_same_vectors(vit, model)
    return model


def _unpacked(vit: VisionTransformer) -> VisionTransformer:
    """Return an encoder whose gated networks have both first layers apart, as the nested ones do.

    timm also packs them into one matrix; the order of its halves says which one is the gate.
    """
    if not all(type(getattr(block, "mlp", None)) is GluMlp for block in vit.blocks):
        return vit
    unpacked = copy.deepcopy(vit)
    for block in cast(Any, unpacked).blocks:
        packed = block.mlp
        dim, width, layers = packed.fc1.in_features, packed.fc2.in_features, ["fc1_g", "fc1_x"]
        has_norm, has_bias = not isinstance(packed.norm, nn.Identity), packed.fc1.bias is not None
        if has_norm or not has_bias or packed.fc2.bias is None or packed.chunk_dim != -1:
            return vit  # it is refused for what it is
        block.mlp = SwiGLU(dim, width)
        block.mlp.act = packed.act
        block.mlp.to(packed.fc1.weight.device, packed.fc1.weight.dtype)
        for part in ("weight", "bias"):
            halves = getattr(packed.fc1, part).detach().chunk(2)
            for layer, half in zip(layers[:: -1 if packed.gate_last else 1], halves, strict=True):
                getattr(getattr(block.mlp, layer), part).data.copy_(half)
        block.mlp.fc2 = packed.fc2
        block.mlp.train(vit.training)
    return unpacked


def _load(vit: nn.Module, path: Path) -> None:
    """Load the weights of a file, whatever stands before their names and whichever head they have.

    Raises:
        ValueError: If a tensor is missing, left over or of another shape; the message names it.
    """
    try:
        found, _ = fitting_weights(read_weights(path), "patch_embed.proj.weight", _name(vit))
        found = timm_names(found, cast(VisionTransformer, vit))
        wanted = without_head(vit.state_dict())
        for name, value in wanted.items():
            if name not in found or found[name].shape != value.shape:
                there = tuple(found[name].shape) if name in found else "missing"
                raise ValueError(f"{name} is {there}, wanted {tuple(value.shape)}")
        refuse_left(name for name in found if name not in wanted and not is_beside(name))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the weights of {_name(vit)}: {error}") from error
    vit.load_state_dict({name: found[name] for name in wanted}, strict=False)


def config_of(vit: nn.Module) -> MatViTConfig:
    """Return the settings of a timm Vision Transformer, without a classification head.

    Raises:
        ValueError: If it cannot be represented; the message names the first difference.
    """
    if type(vit) is not VisionTransformer:
        positions = ", whose blocks turn queries and keys by their positions (RoPE)"
        raise _refusal(vit, f"it is a {type(vit).__name__}{positions * hasattr(vit, 'rope')}")
    if len(vit.blocks) == 0:
        raise _refusal(vit, "it has no blocks")
    block = vit.blocks[0]
    if type(block) is not Block:
        raise _refusal(vit, f"its blocks are {type(block).__name__}")
    vit = _unpacked(vit)
    block = vit.blocks[0]
    if type(block.mlp) not in (Mlp, SwiGLU):
        raise _refusal(vit, f"its feed-forward networks are {type(block.mlp).__name__}")
    images, patches = vit.patch_embed.img_size, vit.patch_embed.patch_size
    if images is None:
        raise _refusal(vit, "it has no input size of its own (img_size is None)")
    if len(set(images)) > 1 or len(set(patches)) > 1:
        raise _refusal(vit, f"its images {images} or patches {patches} are not square")
    try:
        config = _settings(vit)
    except (ValueError, TypeError) as error:
        raise _refusal(vit, str(error)) from error
    with torch.device("meta"):
        plain = VisionTransformer(**timm_arguments(config), weight_init="skip")
    if (difference := _first_difference(vit, plain)) is not None:
        raise _refusal(vit, difference)
    return config


def preprocess_of(vit: nn.Module) -> Preprocess:
    """Return the preprocessing in a timm model's `pretrained_cfg`; without one, ImageNet's.

    timm scales the whole image and cuts out the centre; here the same region is cut out first
    and then scaled with the same filter. Pixels differ by rounding and near the edges; where timm
    has an odd number of pixels to cut off, the pictures are half a pixel apart.

    Raises:
        ValueError: If it prescribes something that is not to be had here.
    """
    size = config_of(vit).img_size
    if not getattr(vit, "pretrained_cfg", None):
        return Preprocess(img_size=size)
    resolve: Any = resolve_data_config
    wanted = resolve({}, model=vit)
    fits = {"center": "crop", "squash": "squash"}
    if wanted["crop_mode"] not in fits or wanted["interpolation"] not in ("bicubic", "bilinear"):
        raise ValueError(
            f"{_name(vit)} wants images cropped as {wanted['crop_mode']!r} and scaled as "
            f"{wanted['interpolation']!r}; give a preprocess of your own"
        )
    return Preprocess(
        img_size=size,
        fit=cast(Literal["crop", "squash"], fits[wanted["crop_mode"]]),
        interpolation=wanted["interpolation"],
        mean=wanted["mean"],
        std=wanted["std"],
        crop_pct=size / math.floor(size / wanted["crop_pct"]),  # timm scales to whole pixels
    )


def create_timm(name: str, pretrained: bool, img_size: int | None) -> nn.Module:
    """Create a timm model, with its trained weights or without.

    Raises:
        ValueError: If there is no such model, or its weights cannot be had.
    """
    # timm itself would only log a warning, and go on with random weights.
    if pretrained and timm.is_model(name) and not timm.is_model_pretrained(name):
        raise ValueError(f"timm has no pretrained weights for {name!r}; see timm.list_pretrained()")
    online = not pretrained or _answers(hub.ENDPOINT)
    options: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    try:
        with nullcontext() if online else _without_network():
            return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # whatever the hub, its cache and the network come up with
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "weights by name come over the network; timm.list_pretrained() has the names"
        if not online and (":" in name or timm.is_model(name)):
            advice = (
                f"weights by name come over the network, and {hub.ENDPOINT} does not answer; "
                f"load the model once where it does, and copy {hub.HF_HUB_CACHE} from there"
            )
        raise ValueError(f"timm cannot load {name!r}: {reason} ({advice})") from error


def _answers(address: str) -> bool:
    """Whether a server says anything at all within seconds, looking up its name included."""
    found: list[bool] = []

    def ask() -> None:
        try:
            urlopen(Request(address, method="HEAD"), timeout=_PATIENCE_S)  # noqa: S310
        except (OSError, ValueError) as error:
            found.append(isinstance(error, HTTPError))
        else:
            found.append(True)

    asking = Thread(target=ask, daemon=True)  # a look-up has no time limit of its own
    asking.start()
    asking.join(_PATIENCE_S)
    return any(found)


@contextmanager
def _without_network() -> Iterator[None]:
    """Let the hub look into its cache only: without an answer it tries again for minutes."""
    before = hub.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    hub.HF_HUB_OFFLINE = True
    socket.setdefaulttimeout(_PATIENCE_S)
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before[0]
        socket.setdefaulttimeout(before[1])


def _settings(vit: Any) -> MatViTConfig:  # noqa: ANN401 -- timm's annotations are too wide
    """Read what can be told apart; what is left shows in a comparison with the outcome."""
    block = vit.blocks[0]
    config = MatViTConfig(
        img_size=vit.patch_embed.img_size[0],
        patch_size=vit.patch_embed.patch_size[0],
        embed_dim=vit.embed_dim,
        depth=len(vit.blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=ratio_of(block.mlp.fc2.in_features, vit.embed_dim),
        global_pool=vit.global_pool,
        class_token=vit.has_class_token,
        reg_tokens=vit.num_reg_tokens,
        qkv_bias=block.attn.qkv.bias is not None,
        qk_norm=not isinstance(block.attn.q_norm, nn.Identity),
        init_values=block.ls1.init_values if isinstance(block.ls1, LayerScale) else None,
        no_embed_class=vit.no_embed_class,
        pre_norm=not isinstance(vit.norm_pre, nn.Identity),
        dynamic_img_size=vit.dynamic_img_size,
        act_layer=cast(Activation, _kind(block.mlp.act)),
        norm_eps=getattr(block.norm1, "eps", 1e-6),
        gated=type(block.mlp) is SwiGLU,
    )
    norm_after_pooling = not isinstance(vit.fc_norm, nn.Identity)
    if norm_after_pooling == (vit.global_pool == "avg"):
        return config
    return replace(config, fc_norm=norm_after_pooling)


def _first_difference(vit: nn.Module, plain: nn.Module) -> str | None:
    found, expected = dict(_describe(vit)), dict(_describe(plain))
    for name in [*expected, *(name for name in found if name not in expected)]:
        mine, theirs = found.get(name, {}), expected.get(name, {})
        for key in [*theirs, *(key for key in mine if key not in theirs)]:
            if mine.get(key) != theirs.get(key):
                where = f"{name}.{key}" if key else name
                return f"{where} is {mine.get(key)}, only {theirs.get(key)} can be represented"
    return None


def _describe(model: nn.Module) -> Iterator[tuple[str, dict[str, object]]]:
    """Say of every module that decides the vectors what it is, and with which settings."""
    for name, module in model.named_modules():
        if isinstance(module, _INACTIVE) or name == "head":
            continue
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str, tuple))
            and not key.startswith("_")
            and key not in _WITHOUT_EFFECT
        }
        shapes = {key: tuple(p.shape) for key, p in module._parameters.items() if p is not None}
        yield name, {"": _kind(module), **settings, **shapes}


def _kind(module: nn.Module) -> str:
    """Name what a module does; of some there are two equal ones, torch's and timm's."""
    if isinstance(module, (nn.GELU, GELU)):
        return "gelu" if getattr(module, "approximate", "none") == "none" else "gelu_tanh"
    names = {kind: name for name, kind in ACTIVATIONS.items()}
    return names.get(type(module), type(module).__name__)


def _check_same_vectors(vit: VisionTransformer, model: MatViT) -> None:
    """Refuse a difference that the comparison of settings did not see."""
    size = model.config.img_size
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    was_training = vit.training
    vit.eval()
    with torch.inference_mode():
        images = images.to(model.device)
        pooled = vit.forward_head(vit.forward_features(images), pre_logits=True)
        same = torch.allclose(normalize(pooled, dim=-1), model(images), rtol=0, atol=_SAME_VECTORS)
    vit.train(was_training)
    if not same:
        raise _refusal(vit, "it computes something else than its settings say")


def _name(vit: nn.Module) -> str:
    known: dict[str, Any] = getattr(vit, "pretrained_cfg", None) or {}
    parts = [known.get("architecture") or type(vit).__name__, known.get("tag")]
    return ".".join(part for part in parts if part)


def _refusal(vit: nn.Module, reason: str) -> ValueError:
    return ValueError(f"{_name(vit)} cannot become a MatViT: {reason}")
