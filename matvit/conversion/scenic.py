"""Checkpoints of the authors' own MatViT, as google-research/scenic trains it with flax.

One msgpack file holds the state of a training run, of which the weights are a third at most: they
are read, all else is skipped unread. The names of the leaves decide what they are, their shapes
decide all sizes. A leaf that is missing, left over or of another shape is an error that names it.

References:
    https://github.com/google-research/scenic/tree/main/scenic/projects/matvit
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgpack
import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray

from matvit.config import MatViTConfig, ratio_of
from matvit.files import open_regular
from matvit.model import MatViT
from matvit.preprocess import Preprocess
from matvit.torch_runtime import tensors_of

Leaves = dict[str, Float32[ndarray, "..."]]
"""Weights by their names, as `Transformer/encoder_norm/scale`."""

_BESIDE = {
    "opt_state", "optimizer", "global_step", "model_state", "rng", "metadata", "step",
    "accum_train_time",
}  # fmt: skip
"""What a training state has beside the weights."""

_ARRAY = 1
"""Code that flax gives to arrays among msgpack's extensions."""

_CHUNKED = "__msgpack_chunked_array__"
_MOST_ENTRIES, _MOST_LEAVES, _MOST_DEPTH, _MOST_AXES = 512, 1 << 14, 12, 5
_MOST_BYTES = 1 << 30  # of one array; flax would have cut a larger one into chunks
_LIMITS: dict[str, Any] = {
    "raw": False,
    "strict_map_key": True,
    "max_map_len": _MOST_ENTRIES,
    "max_array_len": _MOST_ENTRIES,
    "max_str_len": 1 << 12,
    "max_bin_len": _MOST_BYTES,
    "max_ext_len": _MOST_BYTES,
}
_SQUASHED = 384
"""Side of the input of those that see the whole image squashed; others see a crop of it."""


def from_scenic(
    path: str | Path, *, fit: Literal["auto", "crop", "squash"] = "auto", name: str | None = None
) -> MatViT:
    """Read a MatViT that scenic trained; at every size it gives the vectors that scenic's gives.

    The sizes that it was trained at, an eighth, a quarter, a half and all of each feed-forward
    network, are S, M, L and XL here. Its classification head comes along.

    Args:
        path: The checkpoint file.
        fit: How images become square: `"crop"` scales the shorter side to 256 px for an input of
            224 px, and alike for others, and keeps the centre; `"squash"` gives up the aspect
            ratio. `"auto"` is what the published ones were trained on: squashed at 384 px, else
            cropped.
        name: What to call the encoder; None for the name of the file.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        ValueError: If it is no such checkpoint, or a leaf of it is missing, left over, of another
            shape or of a type that is no weight's; the message names it.
    """
    path = Path(path)
    leaves = read_leaves(path)
    try:
        model = _model(leaves, fit, name or path.name)
    except ValueError as error:
        raise ValueError(f"{path} is no MatViT of scenic's: {error}") from error
    return model


def read_leaves(path: Path) -> Leaves:
    """Read the weights of a flax checkpoint, under `params`, `optimizer/target` or bare.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        ValueError: If it is damaged, or larger, deeper or of other types than weights are.
    """
    with _readable(path):
        keys = _keys(path)
        if "params" in keys:
            tree = _read(path, ("params",))
        elif "optimizer" in keys:
            tree = _read(path, ("optimizer", "target"))
        else:
            tree = {key: _read(path, (key,)) for key in keys if key not in _BESIDE}
        while set(tree) == {"params"} and isinstance(tree["params"], dict):
            tree = tree["params"]
        return dict(_flat(tree))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into one kind of error."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (ValueError, OSError, msgpack.exceptions.UnpackException) as error:
        reason = " ".join(str(error).split()) or "it ends too early"
        raise ValueError(f"cannot read {path} as a checkpoint of flax: {reason}") from error


# --- the file ---------------------------------------------------------------------------------


@contextmanager
def _unpacker(path: Path, **how: Any) -> Iterator[Any]:  # noqa: ANN401 -- msgpack has no types
    with open_regular(path) as stream:
        yield msgpack.Unpacker(stream, max_buffer_size=2 * _MOST_BYTES, **_LIMITS, **how)


def _keys(path: Path) -> list[str]:
    """Names of the entries of a file that holds one map and nothing else."""
    with _unpacker(path) as unpacker:
        keys = []
        for _ in range(unpacker.read_map_header()):
            keys.append(_key(unpacker))
            unpacker.skip()
        if unpacker.tell() != path.stat().st_size:
            raise ValueError("it goes on behind its end")
    if len(set(keys)) < len(keys):
        raise ValueError("a key comes twice")
    return keys


def _key(unpacker: Any) -> str:  # noqa: ANN401
    key = unpacker.unpack()
    if not isinstance(key, str):
        raise ValueError(f"a key is {type(key).__name__}, not text")
    return key


def _read(path: Path, place: tuple[str, ...]) -> Any:  # noqa: ANN401
    """Read what lies at a place of nested maps; what comes before is skipped, never in memory."""
    entries = 0

    def counted(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        nonlocal entries
        entries += len(pairs) + 1
        if entries > _MOST_LEAVES:
            raise ValueError(f"it has more than {_MOST_LEAVES:,} entries")
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key comes twice")
        return found

    def refuse(items: list[Any]) -> None:
        raise ValueError(f"it has a list of {len(items)}, weights are in maps")

    hooks = {"object_pairs_hook": counted, "list_hook": refuse, "ext_hook": _array}
    with _unpacker(path, **hooks) as unpacker:
        for step in place:
            for _ in range(unpacker.read_map_header()):
                if _key(unpacker) == step:
                    break
                unpacker.skip()
            else:
                raise ValueError(f"it has no {'/'.join(place)}")
        return unpacker.unpack()


def _array(code: int, data: bytes) -> Float32[ndarray, "..."]:
    """Read an array as flax packs it: shape, name of the type, bytes.

    Raises:
        ValueError: If it is something else, or its size is not what its shape and type say.
    """
    if code != _ARRAY:
        raise ValueError(f"it has an extension of code {code}, weights are arrays (code {_ARRAY})")
    packed = msgpack.unpackb(data, **{**_LIMITS, "max_array_len": 8})
    if not isinstance(packed, list) or len(packed) != 3:
        raise ValueError("an array is not shape, type and bytes")
    shape, kind, content = packed
    if not (
        isinstance(shape, list)
        and len(shape) <= _MOST_AXES
        and all(type(side) is int and 0 < side <= _MOST_BYTES for side in shape)
        and isinstance(content, bytes)
    ):
        raise ValueError(f"an array has the shape {shape!r:.60} or no bytes")
    if kind not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"an array is of type {kind!r:.40}; weights are float32, or 16 bits wide")
    itemsize = 4 if kind == "float32" else 2
    if math.prod(shape) * itemsize != len(content):
        raise ValueError(f"an array of shape {shape} and type {kind} has {len(content):,} bytes")
    if kind == "bfloat16":  # float32 without its lower half
        bits = np.frombuffer(content, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    stored = np.frombuffer(content, "<f4" if kind == "float32" else "<f2")
    return stored.astype(np.float32).reshape(shape)


def _flat(tree: object, place: str = "", depth: int = 0) -> Iterator[tuple[str, ndarray]]:
    """Yield the leaves of nested maps, each with the names that lead to it."""
    if isinstance(tree, ndarray):
        yield place, tree
        return
    if not isinstance(tree, dict) or _CHUNKED in tree:
        what = "an array in chunks" if isinstance(tree, dict) else f"a {type(tree).__name__}"
        raise ValueError(f"{place or 'it'} is {what}, weights are arrays")
    if depth == _MOST_DEPTH:
        raise ValueError(f"it is nested deeper than {_MOST_DEPTH} maps at {place:.80}")
    for key, value in tree.items():
        if not isinstance(key, str) or "/" in key:
            raise ValueError(f"the key {key!r:.80} is no name of a weight")
        yield from _flat(value, f"{place}/{key}" if place else key, depth + 1)


# --- the encoder ------------------------------------------------------------------------------


def _model(leaves: Leaves, fit: str, name: str) -> MatViT:
    """Make the encoder that the shapes of the leaves describe, and give it the leaves.

    Raises:
        ValueError: If they describe none.
    """
    config = _settings(leaves)
    weights = _Weights(leaves)
    tensors = _tensors(weights, config)
    weights.check_all_taken()
    for key, value in tensors.items():
        if not np.isfinite(value).all():
            raise ValueError(f"values of {key} are not finite")
    if fit == "auto":
        fit = "squash" if config.img_size == _SQUASHED else "crop"
    preprocess = Preprocess(
        img_size=config.img_size,
        fit="squash" if fit == "squash" else "crop",
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        crop_pct=1.0 if fit == "squash" else config.img_size / (config.img_size * 8 // 7),
    )
    model = MatViT(config, preprocess, name)
    with torch.no_grad():
        model.take_weights({"model.safetensors": tensors_of(tensors)})
    return model


def _settings(leaves: Leaves) -> MatViTConfig:
    """Read all sizes off the shapes.

    Raises:
        ValueError: If a leaf that they are read off is missing, or they do not fit together.
    """
    for name in leaves:
        if name.startswith(("pre_logits", "MAPHead_0")):
            raise ValueError(f"it has {name}, which cannot be represented")
    block = "Transformer/encoderblock_0"
    side, other, channels, dim = _shape(leaves, "embedding/kernel", 4)
    _, heads, _ = _shape(leaves, f"{block}/MultiHeadDotProductAttention_0/query/kernel", 3)
    _, hidden = _shape(leaves, f"{block}/MlpBlock_0/Dense_0/kernel", 2)
    _, positions, _ = _shape(leaves, "Transformer/posembed_input/pos_embedding", 3)
    _, classes = _shape(leaves, "output_projection/kernel", 2)
    if side != other or channels != 3:
        raise ValueError(
            f"embedding/kernel is for patches of {side}x{other}x{channels}, not square"
        )
    patches = positions - ("cls" in leaves)
    if (rows := math.isqrt(patches)) ** 2 != patches:
        raise ValueError(
            f"Transformer/posembed_input/pos_embedding has {positions} positions, which is no "
            f"square of patches {'and a class token' if 'cls' in leaves else 'without cls'}"
        )
    found = (re.match(r"Transformer/encoderblock_([0-9]{1,4})/", name) for name in leaves)
    return MatViTConfig(
        img_size=rows * side,
        patch_size=side,
        embed_dim=dim,
        depth=1 + max(int(match[1]) for match in found if match),
        num_heads=heads,
        mlp_ratio=ratio_of(hidden, dim),
        num_classes=classes,
        class_token="cls" in leaves,
        global_pool="token" if "cls" in leaves else "avg",
        fc_norm=None if "cls" in leaves else False,
        act_layer="gelu_tanh",  # flax's GELU; the exact one differs by 1e-4
    )


def _shape(leaves: Leaves, name: str, axes: int) -> tuple[int, ...]:
    if name not in leaves:
        raise ValueError(f"it has no {name}")
    if leaves[name].ndim != axes:
        raise ValueError(f"{name} has the shape {leaves[name].shape}, wanted {axes} axes")
    return leaves[name].shape


class _Weights:
    """Leaves, each of which is to be taken once."""

    def __init__(self, leaves: Leaves) -> None:
        self._left = dict(leaves)

    def take(self, name: str, *shape: int) -> Float32[ndarray, "..."]:
        """Return a leaf.

        Raises:
            ValueError: If it is not there, or has another shape.
        """
        if name not in self._left:
            raise ValueError(f"it has no {name}")
        value = self._left.pop(name)
        if value.shape != shape:
            raise ValueError(f"{name} has the shape {value.shape}, wanted {shape}")
        return value

    def check_all_taken(self) -> None:
        """Refuse leaves that are left over.

        Raises:
            ValueError: If there are any; the message names three.
        """
        if left := sorted(self._left):
            more = f" and {len(left) - 3:,} more" if len(left) > 3 else ""
            raise ValueError(f"nothing takes {', '.join(left[:3])}{more}")


def _tensors(weights: _Weights, config: MatViTConfig) -> Leaves:
    """Turn all leaves into tensors of timm's names and axes."""
    dim, patch = config.embed_dim, config.patch_size
    positions = config.tokens()
    kernel = weights.take("embedding/kernel", patch, patch, 3, dim)
    tensors = {
        "patch_embed.proj.weight": kernel.transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": weights.take("embedding/bias", dim),
        "pos_embed": weights.take("Transformer/posembed_input/pos_embedding", 1, positions, dim),
        **_norm(weights, "Transformer/encoder_norm", "norm", dim),
        **_dense(weights, "output_projection", "head", dim, config.num_classes),
    }
    if config.class_token:
        tensors["cls_token"] = weights.take("cls", 1, 1, dim)
    for number in range(config.depth):
        tensors |= _block(weights, config, number)
    return {key: np.ascontiguousarray(value) for key, value in tensors.items()}


def _block(weights: _Weights, config: MatViTConfig, number: int) -> Mapping[str, ndarray]:
    dim, heads, hidden = config.embed_dim, config.num_heads, config.hidden_dim
    theirs, ours = f"Transformer/encoderblock_{number}", f"blocks.{number}"
    attention, mlp = f"{theirs}/MultiHeadDotProductAttention_0", f"{theirs}/MlpBlock_0"
    per_head = dim // heads
    parts = [
        (
            weights.take(f"{attention}/{part}/kernel", dim, heads, per_head).reshape(dim, dim).T,
            weights.take(f"{attention}/{part}/bias", heads, per_head).reshape(-1),
        )
        for part in ("query", "key", "value")
    ]
    out = weights.take(f"{attention}/out/kernel", heads, per_head, dim)
    return {
        **_norm(weights, f"{theirs}/LayerNorm_0", f"{ours}.norm1", dim),
        **_norm(weights, f"{theirs}/LayerNorm_1", f"{ours}.norm2", dim),
        f"{ours}.attn.qkv.weight": np.concatenate([kernel for kernel, _ in parts]),
        f"{ours}.attn.qkv.bias": np.concatenate([bias for _, bias in parts]),
        f"{ours}.attn.proj.weight": out.reshape(dim, dim).T,
        f"{ours}.attn.proj.bias": weights.take(f"{attention}/out/bias", dim),
        **_dense(weights, f"{mlp}/Dense_0", f"{ours}.mlp.fc1", dim, hidden),
        **_dense(weights, f"{mlp}/Dense_1", f"{ours}.mlp.fc2", hidden, dim),
    }


def _norm(weights: _Weights, theirs: str, ours: str, dim: int) -> dict[str, ndarray]:
    names = {"weight": "scale", "bias": "bias"}
    return {f"{ours}.{mine}": weights.take(f"{theirs}/{name}", dim) for mine, name in names.items()}


def _dense(weights: _Weights, theirs: str, ours: str, inputs: int, out: int) -> dict[str, ndarray]:
    return {
        f"{ours}.weight": weights.take(f"{theirs}/kernel", inputs, out).T,
        f"{ours}.bias": weights.take(f"{theirs}/bias", out),
    }
