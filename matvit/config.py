"""The shape of a MatViT, in timm's own words."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct, ValidationError, convert, to_builtins

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]

_Pixels = Annotated[int, Meta(le=1 << 14)]  # bounds of what a file may ask to be built
_Count = Annotated[int, Meta(le=1 << 12)]


def ratio_of(hidden_dim: int, embed_dim: int) -> float:
    """Return the `mlp_ratio` that stands for so many hidden units."""
    ratio = hidden_dim / embed_dim
    # timm rounds down, and so a quotient that was rounded down itself would lose a unit
    return ratio if int(embed_dim * ratio) == hidden_dim else math.nextafter(ratio, math.inf)


class MatViTConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Architecture of a nested Vision Transformer.

    Every field but `norm_eps` and `gated` is the argument of the same name of timm's
    `VisionTransformer`, so a timm model's settings can be copied over unchanged.

    Args:
        img_size: Side of the square input, in pixels.
        patch_size: Side of a patch, in pixels.
        embed_dim: Token width D; also the dimension of the embeddings.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        mlp_ratio: Hidden units of the full feed-forward network, in units of `embed_dim`.
        num_classes: Classes of the training head; 0 for none. The head is not part of the encoder.
        global_pool: `"token"` reads the class token, `"avg"` averages the patch tokens, `"map"`
            lets a learned query attend to them, as SigLIP does.
        class_token: Whether there is a class token.
        reg_tokens: Number of register tokens.
        qkv_bias: Bias in the query, key and value projections.
        qk_norm: Normalise queries and keys.
        init_values: Initial value of layer scale; None for no layer scale.
        no_embed_class: Give no position embedding to class and register tokens.
        pre_norm: Normalise the tokens before the first block.
        fc_norm: Normalise after pooling instead of before; None follows timm (after `"avg"`).
        dynamic_img_size: Accept other input sizes by resampling the position embedding.
        act_layer: Activation of the feed-forward networks, by timm's name.
        norm_eps: Added to the variance in every layer norm.
        gated: Feed-forward networks of two first layers, one of which gates the other: SwiGLU, if
            the activation is `"silu"`.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    img_size: _Pixels
    patch_size: _Pixels
    embed_dim: Annotated[int, Meta(le=1 << 16)]
    depth: _Count
    num_heads: _Count
    mlp_ratio: int | float = 4.0  # an integer stays one: the fingerprint tells 4 from 4.0
    num_classes: Annotated[int, Meta(le=1 << 24)] = 0
    global_pool: Literal["token", "avg", "map"] = "token"
    class_token: bool = True
    reg_tokens: _Count = 0
    qkv_bias: bool = True
    qk_norm: bool = False
    init_values: int | float | None = None
    no_embed_class: bool = False
    pre_norm: bool = False
    fc_norm: bool | None = None
    dynamic_img_size: bool = False
    act_layer: Activation = "gelu"
    norm_eps: int | float = 1e-6
    gated: bool = False

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.img_size % self.patch_size:
            raise ValueError(
                f"img_size must be a multiple of patch_size {self.patch_size}, got {self.img_size}"
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads {self.num_heads}, got {self.embed_dim}"
            )
        if self.hidden_dim < 8 or self.hidden_dim % 8:
            raise ValueError(
                "embed_dim * mlp_ratio must be a multiple of 8, since the smallest trained "
                f"size keeps one eighth of it; got {self.hidden_dim}"
            )
        if self.global_pool not in ("token", "avg", "map"):
            raise ValueError(
                f"global_pool must be 'token', 'avg' or 'map', got {self.global_pool!r}"
            )
        if self.global_pool == "token" and not self.class_token:
            raise ValueError("global_pool='token' reads the class token; set class_token=True")
        if self.num_classes < 0 or self.reg_tokens < 0:
            raise ValueError("num_classes and reg_tokens cannot be negative")
        self._check_functions()

    @property
    def hidden_dim(self) -> int:
        """Hidden units of every full feed-forward network."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def prefix_tokens(self) -> int:
        """Class and register tokens."""
        return int(self.class_token) + self.reg_tokens

    def tokens(self, img_size: int | None = None) -> int:
        """Tokens per image, prefix tokens included.

        Raises:
            ValueError: If `img_size` is not a positive multiple of the patch size.
        """
        size = self.img_size if img_size is None else img_size
        if size < self.patch_size or size % self.patch_size:
            raise ValueError(f"img_size must be a multiple of {self.patch_size}, got {size}")
        return (size // self.patch_size) ** 2 + self.prefix_tokens

    def patches(self, img_size: int | None = None) -> int:
        """Patch tokens per image.

        Raises:
            ValueError: If `img_size` is not a positive multiple of the patch size.
        """
        return self.tokens(img_size) - self.prefix_tokens

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of another size than the encoder takes.

        Raises:
            ValueError: If they are.
        """
        size, patch = self.img_size, self.patch_size
        if self.dynamic_img_size:
            if height % patch or width % patch or not height or not width:
                raise ValueError(f"image sides must be multiples of {patch}, got {height}x{width}")
        elif (height, width) != (size, size):
            raise ValueError(f"this encoder takes {size}x{size} images, got {height}x{width}")

    def _check_functions(self) -> None:
        if self.act_layer not in (known := get_args(Activation)):
            raise ValueError(f"act_layer must be one of {', '.join(known)}, got {self.act_layer!r}")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps must be above 0, got {self.norm_eps}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values.

        Settings that came after the first encoders are left out where they change nothing, so
        that those encoders keep their fingerprints.
        """
        values: dict[str, Any] = to_builtins(self)
        for name, without_effect in (("act_layer", "gelu"), ("norm_eps", 1e-6), ("gated", False)):
            if values[name] == without_effect:
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MatViTConfig:
        """Read the fields back.

        Raises:
            ValueError: If a key is unknown or missing, or a value of the wrong kind or size.
        """
        try:
            return convert(values, cls)
        except ValidationError as error:
            raise ValueError(f"not the settings of a model: {error}") from error
