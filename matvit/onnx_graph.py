"""A submodel as an ONNX graph, written down node by node from the weights: no torch takes part.

The input is what `Preprocess.pixels` makes, uint8 and channels last; mean and deviation are inside
the weights of the patches, the scale of the attention inside those of the queries, and layer scale
inside the projections. The output is vectors of length one. A graph can also be a piece of that:
it begins or ends with the hidden states between two blocks, which many submodels share. Where
tokens were merged, their sizes go along.

References:
    ONNX operators, opset 17: the first that has LayerNormalization, which old runtimes read too.
    https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from matvit.checkpoint import Tensors
from matvit.config import MatViTConfig
from matvit.preprocess import Preprocess

OPSET = 17
IMAGES, STATES, SIZES, VECTORS = "images", "states", "sizes", "vectors"

Blocks = Sequence[tuple[int, int]]
"""Tokens merged and hidden units kept, of some blocks."""


def build_graph(
    config: MatViTConfig,
    preprocess: Preprocess,
    tensors: Tensors,
    blocks: Blocks,
    *,
    first: int | None = None,
    gone: int = 0,
    int8_limit: int | None = None,
    opset: int = OPSET,
) -> ModelProto:
    """Write the graph of some feed-forward networks and all that is between and after them.

    The hidden states before block k are those after its attention, as in `matvit.nested.run`: that
    is what submodels share whose blocks are the same before block k.

    Args:
        config: Architecture.
        preprocess: What the pixels went through.
        tensors: Weights under timm's names; wider feed-forward networks are cut.
        blocks: Tokens merged and hidden units kept in each block of the graph; without any, the
            graph ends with the states of block 0.
        first: Block whose states come in; None for pixels. What comes out are the states of the
            block after the last one, or vectors if there is none.
        gone: Tokens merged before that block.
        int8_limit: Largest magnitude of 8-bit weights; None leaves them float32.
        opset: Version of the operators.
    """
    graph = _Graph(tensors, int8_limit, opset)
    place = 0 if first is None else first
    if first is None:
        source = [_array(IMAGES, (config.img_size, config.img_size, 3), TensorProto.UINT8)]
        tokens = _attend(graph, config, 0, _Tokens(_embed_patches(graph, config, preprocess)))
    else:
        source = _states(config, first, gone)
        tokens = _Tokens(*(each.name for each in source))
    for block, (merged, width) in enumerate(blocks, start=place):
        if merged and not _is_alone(config, block):
            tokens = _merge(graph, config, gone, merged, tokens)
        gone += merged
        tokens = _feed_forward(graph, config, block, width, tokens)
        if block + 1 < config.depth:
            tokens = _attend(graph, config, block + 1, tokens)
    if place + len(blocks) == config.depth:
        target = [_array(VECTORS, (config.embed_dim,))]
        outcome = [_pool(graph, config, tokens)]
    else:
        target = _states(config, place + len(blocks), gone, "next_")
        outcome = list(filter(None, tokens))
    for name, described in zip(outcome, target, strict=True):
        graph.nodes.append(helper.make_node("Identity", [name], [described.name]))
    return helper.make_model(
        helper.make_graph(graph.nodes, "matvit", source, target, graph.constants),
        opset_imports=[helper.make_opsetid("", opset)],
        # The oldest that goes with the opset.
        ir_version=max(8, helper.find_min_ir_version_for([helper.make_opsetid("", opset)])),
        producer_name="matvit",
    )


class _Tokens(NamedTuple):
    """Names of the hidden states, and of the sizes of their tokens; see `matvit.merging.Tokens`."""

    x: str
    sizes: str | None = None


def _states(config: MatViTConfig, block: int, gone: int, prefix: str = "") -> list[ValueInfoProto]:
    """Describe the hidden states before a block, and if tokens were merged, their sizes."""
    if _is_alone(config, block):
        return [_array(prefix + STATES, (1, config.embed_dim))]
    tokens = config.tokens() - gone
    states = [_array(prefix + STATES, (tokens, config.embed_dim))]
    return states + ([_array(prefix + SIZES, (tokens,))] if gone else [])


def _is_alone(config: MatViTConfig, block: int) -> bool:
    """Whether the class token alone goes through the feed-forward network of a block.

    Where it is the vector, nobody looks at what the last block makes of the others.
    """
    return block == config.depth - 1 and config.global_pool == "token"


def _array(name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    """Describe what goes in or comes out: any number of arrays of a shape."""
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


class _Graph:
    """Nodes and constants so far."""

    def __init__(self, tensors: Tensors, int8_limit: int | None, opset: int) -> None:
        self.tensors, self.int8_limit, self.opset = tensors, int8_limit, opset
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: ndarray | float | Sequence[int]) -> str:
        """Add a constant: integers are shapes, anything else is float32."""
        array = np.array(value, order="C")
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        """Add a node of one output."""
        (name,) = self.add_many(operator, *inputs, outputs=1, **attributes)
        return name

    def add_many(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:  # noqa: ANN401
        """Add a node of several outputs."""
        names = [f"{operator.lower()}_{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def linear(
        self, x: str, weight: Float32[ndarray, "out in"], bias: Float32[ndarray, " out"] | None
    ) -> str:
        """Multiply by a matrix, in 8 bits if the graph is of that kind."""
        if self.int8_limit is None:
            x = self.add("MatMul", x, self.constant(weight.T))
        else:
            scale = np.maximum(np.abs(weight).max(axis=1), 1e-12) / self.int8_limit
            rounded = np.rint(weight / scale[:, None]).astype(np.int8)
            x, x_scale, zero = self.add_many("DynamicQuantizeLinear", x, outputs=3)
            product = self.add("MatMulInteger", x, self.constant(rounded.T), zero)
            scales = self.add("Mul", x_scale, self.constant(scale))
            x = self.add("Mul", self.add("Cast", product, to=TensorProto.FLOAT), scales)
        return x if bias is None else self.add("Add", x, self.constant(bias))

    def norm(self, x: str, name: str, eps: float) -> str:
        """Normalise the last axis, if the encoder has this norm."""
        if f"{name}.weight" not in self.tensors:
            return x
        weight, bias = (self.tensors[f"{name}.{part}"] for part in ("weight", "bias"))
        return self.add(
            "LayerNormalization", x, self.constant(weight), self.constant(bias),
            axis=-1, epsilon=eps,
        )  # fmt: skip

    def reduce(self, operator: str, x: str, *, axis: int, keepdims: int) -> str:
        """Reduce one axis; opset 18 made it an input."""
        if self.opset < 18:
            return self.add(operator, x, axes=[axis], keepdims=keepdims)
        return self.add(operator, x, self.constant([axis]), keepdims=keepdims)

    def whole(self, value: int) -> str:
        """Add a whole number."""
        return self.constant(np.array(value))

    def slice(self, x: str, start: int, step: int = 1) -> str:
        """Take every so-many-th of axis 1, from one on."""
        bounds = ([start], [np.iinfo(np.int64).max], [1], [step])
        return self.add("Slice", x, *map(self.constant, bounds))

    def scaled(self, layer: str, layer_scale: str) -> tuple[ndarray, ndarray]:
        """Return weight and bias of a layer, with the layer scale after it."""
        weight, bias = self.tensors[f"{layer}.weight"], self.tensors[f"{layer}.bias"]
        gamma = self.tensors.get(f"{layer_scale}.gamma")
        return (weight, bias) if gamma is None else (weight * gamma[:, None], bias * gamma)


def _embed_patches(graph: _Graph, config: MatViTConfig, preprocess: Preprocess) -> str:
    """Turn pixels into tokens: normalise, project the patches, add positions and prefix tokens."""
    side, dim = config.patch_size, config.embed_dim
    rows = config.img_size // side
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    kernel = graph.tensors["patch_embed.proj.weight"].astype(np.float64)
    offset = -np.einsum("dchw,c->d", kernel, mean / std)
    if (bias := graph.tensors.get("patch_embed.proj.bias")) is not None:
        offset += bias
    kernel = (kernel / (255 * std)[:, None, None]).transpose(2, 3, 1, 0).reshape(-1, dim)
    x = graph.add("Cast", IMAGES, to=TensorProto.FLOAT)
    x = graph.add("Reshape", x, graph.constant([-1, rows, side, rows, side * 3]))
    x = graph.add("Transpose", x, perm=[0, 1, 3, 2, 4])
    x = graph.add("Reshape", x, graph.constant([-1, rows * rows, side * side * 3]))
    x = graph.add("MatMul", x, graph.constant(kernel))
    prefix = [graph.tensors[name] for name in ("cls_token", "reg_token") if name in graph.tensors]
    positions = graph.tensors["pos_embed"]
    if len(prefix) and not config.no_embed_class:
        count = config.prefix_tokens
        prefix = [np.concatenate(prefix, axis=1) + positions[:, :count]]
        positions = positions[:, count:]
    x = graph.add("Add", x, graph.constant(positions + offset))
    if prefix:
        batch = graph.add("Shape", IMAGES, start=0, end=1)
        shape = graph.add("Concat", batch, graph.constant([config.prefix_tokens, dim]), axis=0)
        tokens = graph.constant(np.concatenate(prefix, axis=1))
        x = graph.add("Concat", graph.add("Expand", tokens, shape), x, axis=1)
    return graph.norm(x, "norm_pre", config.norm_eps)


def _attend(graph: _Graph, config: MatViTConfig, block: int, tokens: _Tokens) -> _Tokens:
    """Self-attention with its residual."""
    name, dim, x = f"blocks.{block}", config.embed_dim, tokens.x
    per_head = dim // config.num_heads
    weight = graph.tensors[f"{name}.attn.qkv.weight"]
    bias = graph.tensors.get(f"{name}.attn.qkv.bias")
    if not config.qk_norm:
        scale = np.repeat(np.array([per_head**-0.5, 1, 1], dtype=np.float32), dim)
        weight, bias = weight * scale[:, None], None if bias is None else bias * scale
    states = graph.norm(x, f"{name}.norm1", config.norm_eps)

    def heads_of(asking: str, *parts: int) -> list[str]:
        """Project tokens to queries (0), keys (1) or values (2), and split them into heads."""
        rows = slice(parts[0] * dim, (parts[-1] + 1) * dim)
        joined = graph.linear(asking, weight[rows], None if bias is None else bias[rows])
        shape = graph.constant([0, 0, len(parts), config.num_heads, per_head])
        heads = graph.add("Transpose", graph.add("Reshape", joined, shape), perm=[2, 0, 3, 1, 4])
        places = (graph.constant(np.array(place)) for place in range(len(parts)))
        return [graph.add("Gather", heads, place, axis=0) for place in places]

    if not _is_alone(config, block):
        queries, keys, values = heads_of(states, 0, 1, 2)
    else:
        first = [graph.constant([place]) for place in (0, 1, 1)]
        x, asking = (graph.add("Slice", each, *first) for each in (x, states))
        (queries,), (keys, values) = heads_of(asking, 0), heads_of(states, 1, 2)
    if config.qk_norm:
        queries = graph.norm(queries, f"{name}.attn.q_norm", config.norm_eps)
        queries = graph.add("Mul", queries, graph.constant(per_head**-0.5))
        keys = graph.norm(keys, f"{name}.attn.k_norm", config.norm_eps)
    keys = graph.add("Transpose", keys, perm=[0, 1, 3, 2])
    scores = graph.add("MatMul", queries, keys)
    if tokens.sizes is not None:
        each_key = graph.add("Unsqueeze", graph.add("Log", tokens.sizes), graph.constant([1, 2]))
        scores = graph.add("Add", scores, each_key)
    attention = graph.add("Softmax", scores, axis=-1)
    heads = graph.add("Transpose", graph.add("MatMul", attention, values), perm=[0, 2, 1, 3])
    mixed = graph.add("Reshape", heads, graph.constant([0, 0, dim]))
    mixed = graph.linear(mixed, *graph.scaled(f"{name}.attn.proj", f"{name}.ls1"))
    x = graph.add("Add", x, mixed)
    return _Tokens(x, None if _is_alone(config, block) else tokens.sizes)


def _merge(graph: _Graph, config: MatViTConfig, gone: int, count: int, tokens: _Tokens) -> _Tokens:
    """Merge patch tokens, as `matvit.merging.merge` does."""
    prefix, dim = config.prefix_tokens, config.embed_dim
    length = config.tokens() - gone
    images = graph.add("Shape", tokens.x, start=0, end=1)
    if (sizes := tokens.sizes) is None:
        shape = graph.add("Concat", images, graph.constant([length]), axis=0)
        sizes = graph.add("Expand", graph.constant(1.0), shape)
    leaving, into = _match(graph, graph.slice(tokens.x, prefix), count)
    # Rows of all images are one table; these are where those of each begin.
    end = graph.add("Mul", graph.add("Squeeze", images), graph.whole(length))
    begin = graph.add("Range", graph.whole(0), end, graph.whole(length))
    begin = graph.add("Unsqueeze", begin, graph.constant([1]))

    def rows(places: str) -> str:
        return graph.add("Reshape", graph.add("Add", places, begin), graph.constant([-1]))

    leaving, into = (graph.add("Add", each, graph.whole(prefix)) for each in (leaving, into))
    from_rows, to_rows = rows(leaving), graph.add("Unsqueeze", rows(into), graph.constant([1]))
    zeros = graph.add("Expand", graph.constant(0.0), graph.add("Shape", leaving))
    stay = graph.add("ScatterElements", sizes, leaving, zeros, axis=1)
    stay = graph.add("Sign", stay)
    _, kept = graph.add_many("TopK", stay, graph.constant([length - count]), outputs=2)
    kept_rows = rows(kept)

    def summed(values: str, *shape: int) -> str:
        """Add up what merges, one row for each token that stays."""
        table = graph.add("Reshape", values, graph.constant([-1, *shape]))
        added = graph.add("Gather", table, from_rows)
        table = graph.add("ScatterND", table, to_rows, added, reduction="add")
        return graph.add("Gather", table, kept_rows)

    each = graph.add("Unsqueeze", sizes, graph.constant([2]))
    counts = summed(each, 1)
    x = graph.add("Div", summed(graph.add("Mul", tokens.x, each), dim), counts)
    left = [-1, length - count]
    return _Tokens(
        graph.add("Reshape", x, graph.constant([*left, dim])),
        graph.add("Reshape", counts, graph.constant(left)),
    )


def _match(graph: _Graph, patches: str, count: int) -> tuple[str, str]:
    """Find which patch tokens merge, and into which: among equals the first one goes first."""
    length = graph.reduce("ReduceL2", patches, axis=-1, keepdims=1)
    directions = graph.add("Div", patches, graph.add("Max", length, graph.constant(1e-12)))
    others = graph.add("Transpose", graph.slice(directions, 1, 2), perm=[0, 2, 1])
    scores = graph.add("MatMul", graph.slice(directions, 0, 2), others)
    partner = graph.add("ArgMax", scores, axis=-1, keepdims=0)
    likeness = graph.reduce("ReduceMax", scores, axis=-1, keepdims=0)
    _, gone = graph.add_many("TopK", likeness, graph.constant([count]), outputs=2)
    into = graph.add("GatherElements", partner, gone, axis=1)
    leaving, into = (graph.add("Mul", each, graph.whole(2)) for each in (gone, into))
    return leaving, graph.add("Add", into, graph.whole(1))


def _feed_forward(
    graph: _Graph, config: MatViTConfig, block: int, width: int, tokens: _Tokens
) -> _Tokens:
    """Feed-forward network of the first `width` hidden units, with its residual."""
    name, x = f"blocks.{block}", tokens.x
    normed = graph.norm(x, f"{name}.norm2", config.norm_eps)

    def first(layer: str) -> str:
        weight, bias = (graph.tensors[f"{name}.mlp.{layer}.{part}"] for part in ("weight", "bias"))
        return graph.linear(normed, weight[:width], bias[:width])

    hidden = _activate(graph, config, first("fc1_g" if config.gated else "fc1"))
    if config.gated:
        hidden = graph.add("Mul", hidden, first("fc1_x"))
    weight, bias = graph.scaled(f"{name}.mlp.fc2", f"{name}.ls2")
    return tokens._replace(x=graph.add("Add", x, graph.linear(hidden, weight[:, :width], bias)))


def _activate(graph: _Graph, config: MatViTConfig, x: str) -> str:
    if config.act_layer == "quick_gelu":
        scaled = graph.add("Mul", x, graph.constant(1.702))
        return graph.add("Mul", x, graph.add("Sigmoid", scaled))
    if config.act_layer == "silu":
        return graph.add("Mul", x, graph.add("Sigmoid", x))
    if config.act_layer == "gelu":
        curve = graph.add("Erf", graph.add("Div", x, graph.constant(2**0.5)))
    else:
        cube = graph.add("Mul", graph.add("Mul", x, x), x)
        inner = graph.add("Add", x, graph.add("Mul", cube, graph.constant(0.044715)))
        curve = graph.add("Tanh", graph.add("Mul", inner, graph.constant((2 / np.pi) ** 0.5)))
    half = graph.add("Mul", x, graph.add("Add", curve, graph.constant(1.0)))
    return graph.add("Mul", half, graph.constant(0.5))


def _pool(graph: _Graph, config: MatViTConfig, tokens: _Tokens) -> str:
    """Reduce tokens to one vector of length one."""
    x, sizes = tokens
    if config.global_pool == "token":
        x = graph.add("Gather", x, graph.constant(np.array(0)), axis=1)
        x = graph.norm(x, "norm", config.norm_eps)
    else:
        x = graph.norm(x, "norm", config.norm_eps)
        x = graph.slice(x, config.prefix_tokens)
        if config.global_pool == "map":
            x = _attend_once(graph, config, x, sizes)
        elif sizes is None:
            x = graph.reduce("ReduceMean", x, axis=1, keepdims=0)
        else:  # the mean over patches, that tokens stand for
            shares = graph.add("Div", graph.slice(sizes, config.prefix_tokens),
                               graph.constant(float(config.patches())))  # fmt: skip
            row = graph.add("Unsqueeze", shares, graph.constant([1]))
            x = graph.add("Squeeze", graph.add("MatMul", row, x), graph.constant([1]))
    x = graph.norm(x, "fc_norm", config.norm_eps)
    length = graph.reduce("ReduceL2", x, axis=-1, keepdims=1)
    return graph.add("Div", x, graph.add("Max", length, graph.constant(1e-12)))


def _attend_once(graph: _Graph, config: MatViTConfig, x: str, sizes: str | None) -> str:
    """Let the learned query attend to the tokens, and run its feed-forward network."""
    heads, per_head = config.num_heads, config.embed_dim // config.num_heads

    def layer(name: str) -> tuple[ndarray, ndarray]:
        return graph.scaled(f"attn_pool.{name}", "attn_pool")

    weight, bias = layer("q")
    query = (graph.tensors["attn_pool.latent"][0, 0] @ weight.T + bias) * per_head**-0.5
    split = graph.constant([0, 0, 2, heads, per_head])
    joined = graph.add("Reshape", graph.linear(x, *layer("kv")), split)
    joined = graph.add("Transpose", joined, perm=[2, 0, 3, 1, 4])
    keys, values = (
        graph.add("Gather", joined, graph.constant(np.array(part)), axis=0) for part in range(2)
    )
    asked = graph.constant(query.reshape(1, heads, 1, per_head))
    keys = graph.add("Transpose", keys, perm=[0, 1, 3, 2])
    scores = graph.add("MatMul", asked, keys)
    if sizes is not None:  # as often as a token has patches
        counts = graph.add("Log", graph.slice(sizes, config.prefix_tokens))
        scores = graph.add("Add", scores, graph.add("Unsqueeze", counts, graph.constant([1, 2])))
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), values)
    x = graph.add("Reshape", mixed, graph.constant([0, config.embed_dim]))
    x = graph.linear(x, *layer("proj"))
    hidden = graph.linear(graph.norm(x, "attn_pool.norm", config.norm_eps), *layer("mlp.fc1"))
    return graph.add("Add", x, graph.linear(_activate(graph, config, hidden), *layer("mlp.fc2")))
