"""Embedding the same images again with another submodel, without repeating what both share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from numpy import ndarray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import normalize

from matvit import backbone
from matvit.cost import count_macs, count_shared_macs
from matvit.embedding import Precision, precision_of, resolve_precision, to_input, unit_vectors
from matvit.layers import NestedBlock
from matvit.model import MatViT
from matvit.submodel import Granularity, Submodel

Widths = tuple[int, ...]


class ContinuedEmbedding:
    """Images that are embedded by one submodel after the other, each going on where it can.

    Submodels whose first blocks keep the same widths have the same hidden states up to there, and
    the attention of the block where they part is the same too. What was computed once is kept, so
    a larger submodel pays only for what is new. The vectors are those of `embed`: bit for bit if
    as many images run together.

    Not for several threads at once: it remembers.

    Args:
        model: A whole encoder.
        pixels: Images as `Preprocess.pixels` makes them.
        precision: As for `embed`.

    Raises:
        ValueError: If the pixels are not uint8, or the encoder is in training mode.

    Attributes:
        macs: Multiply-accumulates spent on each image so far.
    """

    def __init__(
        self,
        model: MatViT,
        pixels: UInt8[ndarray, "images height width 3"],
        *,
        precision: Precision = "auto",
    ) -> None:
        if pixels.dtype != np.uint8:
            raise ValueError(f"expected uint8 pixels, got {pixels.dtype}")
        if model.training:
            raise ValueError(f"encoder {model.name} is in training mode; call eval() first")
        self._model = model
        self._dtype = resolve_precision(model.device, precision, len(pixels))
        self._images = to_input(pixels, model)
        backbone.check_images(model.config, self._images)
        # For either set of weights: by the widths of the blocks that ran, the tokens after them
        # and, unless they were the last, the attention of the next one.
        self._attended: dict[bool, dict[Widths, Tensor]] = {False: {}, True: {}}
        self._done: list[Submodel] = []
        self.macs = 0

    def embed(
        self, submodel: Submodel | Granularity | str | None = None
    ) -> Float32[ndarray, "images dim"]:
        """Embed the images with a submodel, from the longest prefix that ran before.

        Returns:
            float32 embeddings of length one.

        Raises:
            ValueError: If the submodel is not one of the encoder's, or an embedding is not finite.
        """
        chosen = self._model.submodel(submodel)
        added = self.added_macs(chosen)
        with torch.inference_mode(), precision_of(self._model.device, self._dtype):
            tokens = self._run(chosen)
            pooled = self._model.pool(tokens.unsqueeze(0), [chosen])[0]
            vectors = normalize(pooled, dim=-1).float().cpu().numpy()
        self.macs += added
        self._done.append(chosen)
        return unit_vectors(vectors, self._model.name)

    def added_macs(self, submodel: Submodel | Granularity | str | None = None) -> int:
        """Multiply-accumulates per image that embedding with a submodel would add now."""
        return added_macs(self._model, self._model.submodel(submodel), self._done)

    def take(self, rows: Int64[ndarray, " rows"]) -> ContinuedEmbedding:
        """Return some of the images, to go on with those alone."""
        part = object.__new__(ContinuedEmbedding)
        part._model, part._dtype = self._model, self._dtype
        chosen = torch.from_numpy(np.asarray(rows)).to(self._images.device)
        with torch.inference_mode():
            part._images = self._images[chosen]
            part._attended = {
                anchored: {widths: tokens[chosen] for widths, tokens in states.items()}
                for anchored, states in self._attended.items()
            }
        part._done, part.macs = list(self._done), self.macs
        return part

    def _run(self, submodel: Submodel) -> Float[Tensor, "images tokens dim"]:
        weights = self._model.weights_of(submodel)
        known = self._attended[weights is self._model.anchor]
        if () not in known:
            known[()] = _block(weights, 0).attend(backbone.stem(weights, self._images))
        widths = submodel.widths
        start = max(count for count in range(len(widths) + 1) if widths[:count] in known)
        tokens = known[widths[:start]]
        for place in range(start, len(widths)):
            tokens = _block(weights, place).feed_forward(tokens, widths[place])
            if place + 1 < len(widths):
                tokens = _block(weights, place + 1).attend(tokens)
            known[widths[: place + 1]] = tokens
        normed: Tensor = weights.norm(tokens)
        return normed


def added_macs(model: MatViT, submodel: Submodel, done: Sequence[Submodel]) -> int:
    """Multiply-accumulates that a submodel adds to others which have run on the same image."""
    weights = model.weights_of(submodel)
    shared = [
        count_shared_macs(model.config, submodel, each)
        for each in done
        if model.weights_of(each) is weights
    ]
    return count_macs(model.config, submodel) - max(shared, default=0)


def _block(weights: VisionTransformer, place: int) -> NestedBlock:
    block = weights.blocks[place]
    assert isinstance(block, NestedBlock)
    return block
