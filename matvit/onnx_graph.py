"""A submodel as an ONNX graph, written down node by node from the weights: no torch takes part.

The input is what `Preprocess.pixels` makes, uint8 and channels last; mean and deviation are inside
the weights of the patches, the scale of the attention inside those of the queries, and layer scale
inside the projections. The output is vectors of length one. A graph can also be a piece of that:
it begins or ends with the hidden states between two blocks, which many submodels share.

References:
    ONNX operators, opset 17: the first that has LayerNormalization, which old runtimes read too.
    https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from matvit.checkpoint import Tensors
from matvit.config import MatViTConfig
from matvit.preprocess import Preprocess

OPSET = 17
IMAGES, STATES, VECTORS = "images", "states", "vectors"


def build_graph(
    config: MatViTConfig,
    preprocess: Preprocess,
    tensors: Tensors,
    widths: Sequence[int],
    *,
    first: int | None = None,
    int8_limit: int | None = None,
    opset: int = OPSET,
) -> ModelProto:
    """Write the graph of some feed-forward networks and all that is between and after them.

    The hidden states before block k are those after its attention, as in `matvit.nested.run`: that
    is what submodels share whose widths are the same before block k.

    Args:
        config: Architecture.
        preprocess: What the pixels went through.
        tensors: Weights under timm's names; wider feed-forward networks are cut.
        widths: Hidden units kept in each block of the graph; without any, the graph ends with the
            states of block 0.
        first: Block whose states come in; None for pixels. What comes out are the states of the
            block after the last width, or vectors if there is none.
        int8_limit: Largest magnitude of 8-bit weights; None leaves them float32.
        opset: Version of the operators.
    """
    graph = _Graph(tensors, int8_limit, opset)
    begin = 0 if first is None else first
    end = begin + len(widths)
    if first is None:
        x = _attend(graph, config, 0, _embed_patches(graph, config, preprocess))
    else:
        x = STATES
    for block, width in enumerate(widths, start=begin):
        x = _feed_forward(graph, config, block, width, x)
        if block + 1 < config.depth:
            x = _attend(graph, config, block + 1, x)
    x = _pool(graph, config, x) if end == config.depth else x
    side, dim = config.img_size, config.embed_dim
    source, target = _array(IMAGES, (side, side, 3), TensorProto.UINT8), _array(VECTORS, (dim,))
    if first is not None:
        source = _array(STATES, (_tokens(config, first), dim))
    if end < config.depth:
        target = _array("next_states", (_tokens(config, end), dim))
    graph.nodes.append(helper.make_node("Identity", [x], [target.name]))
    return helper.make_model(
        helper.make_graph(graph.nodes, "matvit", [source], [target], graph.constants),
        opset_imports=[helper.make_opsetid("", opset)],
        # The oldest that goes with the opset.
        ir_version=max(8, helper.find_min_ir_version_for([helper.make_opsetid("", opset)])),
        producer_name="matvit",
    )


def _tokens(config: MatViTConfig, block: int) -> int:
    """Tokens that go through the feed-forward network of a block.

    Where the class token is the vector, nobody looks at what the last block makes of the others.
    """
    is_last = block == config.depth - 1
    return 1 if is_last and config.global_pool == "token" else config.tokens()


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


def _attend(graph: _Graph, config: MatViTConfig, block: int, x: str) -> str:
    """Self-attention with its residual."""
    name, dim = f"blocks.{block}", config.embed_dim
    per_head = dim // config.num_heads
    weight = graph.tensors[f"{name}.attn.qkv.weight"]
    bias = graph.tensors.get(f"{name}.attn.qkv.bias")
    if not config.qk_norm:
        scale = np.repeat(np.array([per_head**-0.5, 1, 1], dtype=np.float32), dim)
        weight, bias = weight * scale[:, None], None if bias is None else bias * scale
    tokens = graph.norm(x, f"{name}.norm1", config.norm_eps)

    def heads_of(asking: str, *parts: int) -> list[str]:
        """Project tokens to queries (0), keys (1) or values (2), and split them into heads."""
        rows = slice(parts[0] * dim, (parts[-1] + 1) * dim)
        joined = graph.linear(asking, weight[rows], None if bias is None else bias[rows])
        shape = graph.constant([0, 0, len(parts), config.num_heads, per_head])
        heads = graph.add("Transpose", graph.add("Reshape", joined, shape), perm=[2, 0, 3, 1, 4])
        places = (graph.constant(np.array(place)) for place in range(len(parts)))
        return [graph.add("Gather", heads, place, axis=0) for place in places]

    if _tokens(config, block) == config.tokens():
        queries, keys, values = heads_of(tokens, 0, 1, 2)
    else:
        first = [graph.constant([place]) for place in (0, 1, 1)]
        x, asking = (graph.add("Slice", each, *first) for each in (x, tokens))
        (queries,), (keys, values) = heads_of(asking, 0), heads_of(tokens, 1, 2)
    if config.qk_norm:
        queries = graph.norm(queries, f"{name}.attn.q_norm", config.norm_eps)
        queries = graph.add("Mul", queries, graph.constant(per_head**-0.5))
        keys = graph.norm(keys, f"{name}.attn.k_norm", config.norm_eps)
    keys = graph.add("Transpose", keys, perm=[0, 1, 3, 2])
    attention = graph.add("Softmax", graph.add("MatMul", queries, keys), axis=-1)
    heads = graph.add("Transpose", graph.add("MatMul", attention, values), perm=[0, 2, 1, 3])
    mixed = graph.add("Reshape", heads, graph.constant([0, 0, dim]))
    return graph.add(
        "Add", x, graph.linear(mixed, *graph.scaled(f"{name}.attn.proj", f"{name}.ls1"))
    )


def _feed_forward(graph: _Graph, config: MatViTConfig, block: int, width: int, x: str) -> str:
    """Feed-forward network of the first `width` hidden units, with its residual."""
    name = f"blocks.{block}"
    weight, bias = (graph.tensors[f"{name}.mlp.fc1.{part}"][:width] for part in ("weight", "bias"))
    hidden = graph.linear(graph.norm(x, f"{name}.norm2", config.norm_eps), weight, bias)
    hidden = _activate(graph, config, hidden)
    weight, bias = graph.scaled(f"{name}.mlp.fc2", f"{name}.ls2")
    return graph.add("Add", x, graph.linear(hidden, weight[:, :width], bias))


def _activate(graph: _Graph, config: MatViTConfig, x: str) -> str:
    if config.act_layer == "quick_gelu":
        scaled = graph.add("Mul", x, graph.constant(1.702))
        return graph.add("Mul", x, graph.add("Sigmoid", scaled))
    if config.act_layer == "gelu":
        curve = graph.add("Erf", graph.add("Div", x, graph.constant(2**0.5)))
    else:
        cube = graph.add("Mul", graph.add("Mul", x, x), x)
        inner = graph.add("Add", x, graph.add("Mul", cube, graph.constant(0.044715)))
        curve = graph.add("Tanh", graph.add("Mul", inner, graph.constant((2 / np.pi) ** 0.5)))
    half = graph.add("Mul", x, graph.add("Add", curve, graph.constant(1.0)))
    return graph.add("Mul", half, graph.constant(0.5))


def _pool(graph: _Graph, config: MatViTConfig, x: str) -> str:
    """Reduce tokens to one vector of length one."""
    if config.global_pool == "token":
        x = graph.add("Gather", x, graph.constant(np.array(0)), axis=1)
        x = graph.norm(x, "norm", config.norm_eps)
    else:
        x = graph.norm(x, "norm", config.norm_eps)
        start, end, axis = ([config.prefix_tokens], [config.tokens()], [1])
        x = graph.add("Slice", x, *map(graph.constant, (start, end, axis)))
        x = graph.reduce("ReduceMean", x, axis=1, keepdims=0)
    x = graph.norm(x, "fc_norm", config.norm_eps)
    length = graph.reduce("ReduceL2", x, axis=-1, keepdims=1)
    return graph.add("Div", x, graph.add("Max", length, graph.constant(1e-12)))
