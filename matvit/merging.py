"""Merging tokens that have become alike: fewer of them cost less in all that follows.

Patch tokens are dealt into two halves in turns. Each of the first half finds the one of the second
half that is most like it, by the cosine of their hidden states; those that are most alike merge
into it. A merged token is the mean of the patches in it, counts for as many keys in attention, and
for as many tokens in a mean over all. Class token and registers stay as they are. How many merge is
fixed, so shapes are; which ones depends on the image. Among equals the first one goes first.

References:
    Token Merging: Your ViT But Faster, sections 3.1 and 3.2 (there by the keys of the attention;
    hidden states find no less here, see docs/LOG.md). https://arxiv.org/abs/2210.09461
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize


class Tokens(NamedTuple):
    """Hidden states.

    Attributes:
        x: One vector per token: class token and registers first.
        sizes: How many tokens of the input each stands for; None for one each.
    """

    x: Float[Tensor, "batch tokens dim"]
    sizes: Float[Tensor, "batch tokens"] | None = None

    @property
    def log_sizes(self) -> Float[Tensor, "batch 1 1 tokens"] | None:
        """What attention adds to the scores of its keys, so that a merged token counts in full."""
        return None if self.sizes is None else self.sizes.log()[:, None, None, :]


def merge(tokens: Tokens, count: int, prefix: int) -> Tokens:
    """Merge some patch tokens into others.

    Args:
        tokens: Hidden states.
        count: How many merge, at most half of the patch tokens.
        prefix: Class and register tokens.

    Returns:
        `count` tokens less, in the same order; the same if none merge.
    """
    if not count:
        return tokens
    x, sizes = tokens
    images, length, dim = x.shape
    begin = torch.arange(prefix, images * length, length, device=x.device)[:, None]
    gone, into = _match(x[:, prefix:].detach(), count)
    gone, into = (begin + gone).flatten(), (begin + into).flatten()
    sums = (x if sizes is None else x * sizes[:, :, None]).reshape(-1, dim)
    counts = x.new_ones(images * length) if sizes is None else sizes.flatten()
    sums = sums.index_add(0, into, sums.index_select(0, gone))
    counts = counts.index_add(0, into, counts.index_select(0, gone))
    stay = torch.ones(images * length, dtype=torch.bool, device=x.device)
    rows = stay.index_fill_(0, gone, value=False).nonzero()[:, 0]
    counts = counts.index_select(0, rows)
    x = (sums.index_select(0, rows) / counts[:, None]).view(images, -1, dim)
    return Tokens(x, counts.view(images, -1))


def _match(
    patches: Float[Tensor, "images patches dim"], count: int
) -> tuple[Int64[Tensor, "images count"], Int64[Tensor, "images count"]]:
    """Find which patch tokens merge, and into which."""
    with torch.autocast(patches.device.type, enabled=False):  # rounded, many would be equally near
        wide = patches.to(torch.promote_types(patches.dtype, torch.float32))
        directions = normalize(wide, dim=-1)
        likeness, partner = (directions[:, ::2] @ directions[:, 1::2].mT).max(dim=-1)
    gone = likeness.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return 2 * gone, 2 * partner.gather(1, gone) + 1
