"""The layers of a MatViT: where the paper's idea lives."""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxtyping import Float
from timm.layers.activations import GELUTanh, QuickGELU
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import linear

from matvit.config import MatViTConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": GELUTanh,
    "quick_gelu": QuickGELU,
}


def timm_arguments(config: MatViTConfig) -> dict[str, Any]:
    """Return the arguments that make timm's `VisionTransformer` the plain ViT of these settings."""
    arguments = {**config.to_dict(), "act_layer": ACTIVATIONS[config.act_layer]}
    if (eps := arguments.pop("norm_eps", None)) is not None:
        arguments["norm_layer"] = partial(LayerNorm, eps=eps)
    return arguments


class NestedMlp(Mlp):
    """Feed-forward network whose first `width` hidden units are a network of their own.

    Sliced, not masked: a masked network still multiplies the zeros, so its smaller sizes would
    be no cheaper to run. Parameters are named and shaped as in timm's `Mlp`, so a plain ViT's
    weights load unchanged.

    References:
        MatFormer: Nested Transformer for Elastic Inference, section 3.1.
        https://arxiv.org/abs/2310.07707
    """

    def forward(
        self, x: Float[Tensor, "*batch tokens dim"], width: int | None = None
    ) -> Float[Tensor, "*batch tokens dim"]:
        """Run the nested network that keeps the first `width` hidden units (None: all).

        Raises:
            ValueError: If `width` is outside 1..hidden_dim.
        """
        hidden_dim = len(self.fc1.weight)
        width = hidden_dim if width is None else width
        # A Python slice would clip in silence and the cost reported would be wrong.
        if not 1 <= width <= hidden_dim:
            raise ValueError(f"width must be within 1..{hidden_dim}, got {width}")
        bias = self.fc1.bias
        hidden = linear(x, self.fc1.weight[:width], None if bias is None else bias[:width])
        hidden = self.drop1(self.act(hidden))
        out: Tensor = self.drop2(linear(hidden, self.fc2.weight[:, :width], self.fc2.bias))
        return out


class NestedBlock(Block):
    """A timm ViT block whose two halves run apart, the second one at any width."""

    def attend(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Self-attention with its residual: the part that all submodels share."""
        out: Tensor = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return out

    def feed_forward(
        self, x: Float[Tensor, "batch tokens dim"], width: int | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Feed-forward network of `width` hidden units, with its residual.

        Raises:
            ValueError: If `width` is outside 1..hidden_dim.
        """
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x), width)))
        return out
