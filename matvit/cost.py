"""What an encoder costs: multiply-accumulates and parameters, in closed form.

Counting rule: one MAC is one multiplication and one addition, so torch's FLOP counter reads
twice these numbers. Matrix products are counted, attention included; biases, norms, softmax and
activations are not. For N tokens of dimension D, per block:

    query, key, value and output projections   4 N D^2
    attention scores and weighted sum          2 N^2 D
    feed-forward network                       2 N D width, gated 3 N D width

Only the last line shrinks with the width, so the smallest trained size of a ViT-B/16 still costs
44 % of the full encoder. Tokens that a block merges are gone from its feed-forward network on,
which shrinks N in all three. To find them costs N^2 D / 4 of the patch tokens before. The
classification head is no part of the encoder.

A query that pools attends once more, to the patches: 2 N D^2 for keys and values, 2 N D for the
attention, and 2 D^2 + 2 D width for projections and feed-forward network of one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from matvit.config import MatViTConfig
from matvit.submodel import Granularity, Submodel


def count_macs(config: MatViTConfig, submodel: Submodel, img_size: int | None = None) -> int:
    """Multiply-accumulates of embedding one image.

    Args:
        config: The full model.
        submodel: The part of it that runs.
        img_size: Side of the input in pixels; the model's own if None.

    Raises:
        ValueError: If the submodel is not one of this model's, or the size does not fit.

    Examples:
        >>> config = MatViTConfig(img_size=64, patch_size=8, embed_dim=256, depth=6, num_heads=4)
        >>> full = Submodel((1024,) * 6, hidden_dim=1024)
        >>> small = Submodel((128,) * 6, hidden_dim=1024)
        >>> f"{count_macs(config, full):,}", f"{count_macs(config, small):,}"
        ('322,833,408', '143,920,128')
    """
    check_submodel(config, submodel)
    return _count_macs(config, submodel.blocks(config.patches(img_size)), config.depth, img_size)


def count_shared_macs(
    config: MatViTConfig, submodel: Submodel, other: Submodel, img_size: int | None = None
) -> int:
    """Multiply-accumulates that two submodels have in common when both embed one image.

    These are the patch embedding, the blocks before the first one that keeps other hidden units or
    merges other tokens, and that one's attention; for equal submodels, everything.

    Raises:
        ValueError: If one of them is not one of this model's, or the size does not fit.
    """
    check_submodel(config, submodel)
    check_submodel(config, other)
    patches = config.patches(img_size)
    blocks = submodel.blocks(patches)
    pairs = zip(blocks, other.blocks(patches), strict=True)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return _count_macs(config, blocks[:same], min(same + 1, config.depth), img_size)


def count_params(config: MatViTConfig, submodel: Submodel) -> int:
    """Parameters of the extracted encoder, biases, norms and embeddings included."""
    check_submodel(config, submodel)
    matrices = 3 if config.gated else 2
    return (
        _stem_params(config)
        + _pooling_params(config)
        + config.depth * _attention_params(config)
        + sum(
            (matrices * width * config.embed_dim) + (matrices - 1) * width + config.embed_dim
            for width in submodel.widths
        )
    )


def check_submodel(config: MatViTConfig, submodel: Submodel) -> None:
    """Refuse a submodel of another model.

    Raises:
        ValueError: If depth, hidden width or patch tokens differ.
    """
    if len(submodel.widths) != config.depth or submodel.hidden_dim != config.hidden_dim:
        raise ValueError(
            f"submodel {submodel} is for {len(submodel.widths)} blocks of {submodel.hidden_dim} "
            f"hidden units, this model has {config.depth} of {config.hidden_dim}"
        )
    if submodel.merged and submodel.patches != config.patches():
        raise ValueError(
            f"submodel {submodel} merges tokens of {submodel.patches} patches, this model has "
            f"{config.patches()}"
        )


def _count_macs(
    config: MatViTConfig,
    blocks: Sequence[tuple[int, int]],
    attentions: int,
    img_size: int | None,
) -> int:
    """Cost of the patch embedding, some attentions, and what blocks merge and keep after theirs."""
    patches, dim = config.patches(img_size), config.embed_dim
    macs = patches * 3 * config.patch_size**2 * dim
    for merged, width in (*blocks, (0, 0))[:attentions]:
        macs += count_block_macs(config, patches, merged, width)
        patches -= merged
    pools = len(blocks) == config.depth
    return macs + (_pooling_macs(config, patches) if pools else 0)


def _pooling_macs(config: MatViTConfig, patches: int) -> int:
    """Cost of the query that attends to the patches, and of the feed-forward network behind it."""
    dim, hidden = config.embed_dim, config.hidden_dim
    if config.global_pool != "map":
        return 0
    return 2 * dim**2 + 2 * patches * dim**2 + 2 * patches * dim + 2 * dim * hidden


def _pooling_params(config: MatViTConfig) -> int:
    """The query, its attention, a norm and a feed-forward network."""
    dim, hidden = config.embed_dim, config.hidden_dim
    if config.global_pool != "map":
        return 0
    attention = dim + 4 * (dim * dim + dim)
    return attention + 2 * dim + 2 * dim * hidden + hidden + dim


def count_block_macs(config: MatViTConfig, patches: int, merged: int, width: int) -> int:
    """Multiply-accumulates of one block.

    Args:
        config: Architecture.
        patches: Patch tokens that come in.
        merged: Of those, how many are merged into others after the attention.
        width: Hidden units of the feed-forward network; 0 leaves it out.
    """
    dim, tokens = config.embed_dim, patches + config.prefix_tokens
    macs = 4 * tokens * dim**2 + 2 * tokens**2 * dim
    if merged:
        macs += (patches - patches // 2) * (patches // 2) * dim
    return macs + (3 if config.gated else 2) * (tokens - merged) * dim * width


def _stem_params(config: MatViTConfig) -> int:
    """Patch, position and prefix embeddings, and the norms outside the blocks."""
    dim = config.embed_dim
    patches = (config.img_size // config.patch_size) ** 2
    positions = patches if config.no_embed_class else patches + config.prefix_tokens
    projection = 3 * config.patch_size**2 * dim + (0 if config.pre_norm else dim)
    norms = 2 * dim * (1 + int(config.pre_norm))
    return projection + (positions + config.prefix_tokens) * dim + norms


def _attention_params(config: MatViTConfig) -> int:
    """Attention of one block, with the block's two norms and layer scales."""
    dim = config.embed_dim
    qkv = 3 * dim * dim + (3 * dim if config.qkv_bias else 0)
    output = dim * dim + dim
    norms = 4 * dim + (4 * (dim // config.num_heads) if config.qk_norm else 0)
    layer_scale = 2 * dim if config.init_values else 0
    return qkv + output + norms + layer_scale


def resolve_submodel(
    config: MatViTConfig,
    spec: Submodel | Granularity | str | None,
    cut: Submodel | None = None,
    *,
    has_int8: bool = False,
) -> Submodel:
    """Read what a caller wrote as a submodel of an encoder; None is its largest size.

    Args:
        config: Architecture.
        spec: As written.
        cut: The one size that there is, of an extracted submodel.
        has_int8: Whether what runs the encoder can compute in 8 bits.

    Raises:
        ValueError: If it cannot be read, or is none of the encoder's.
    """
    wanted = parse_submodel(config, spec) if isinstance(spec, str) else spec
    if wanted is not None and wanted.int8 and not has_int8:
        raise ValueError(f"{wanted} needs ONNX Runtime; load the encoder with runtime onnx")
    if cut is not None:
        # ONNX Runtime rounds and merges whatever it runs; a plain timm model does neither.
        plain = (
            replace(wanted, int8=False, merged=()) if wanted is not None and has_int8 else wanted
        )
        if plain is not None and plain != cut:
            raise ValueError(
                f"this encoder is the extracted submodel {cut} and holds no {wanted}; "
                "use the full model for other sizes"
            )
        return wanted or cut
    if wanted is None:
        return Submodel.uniform(Granularity.XL, depth=config.depth, hidden_dim=config.hidden_dim)
    check_submodel(config, wanted)
    return wanted


def parse_submodel(config: MatViTConfig, text: str) -> Submodel:
    """Read a submodel of a model as people write it; see `Submodel.parse`.

    Raises:
        ValueError: If it cannot be read.
    """
    return Submodel.parse(
        text, depth=config.depth, hidden_dim=config.hidden_dim, patches=config.patches()
    )
