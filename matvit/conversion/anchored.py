"""A MatViT whose full size is another encoder's, bit for bit.

That is what a conversion makes: the smaller sizes are trained, and an index that was made with
the original stays valid, since the full size is the original still.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from msgspec.structs import replace
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from matvit.config import MatViTConfig
from matvit.identity import without_head
from matvit.model import MatViT, Memory, nested_vit, pool, run
from matvit.preprocess import Preprocess
from matvit.submodel import Submodel


class AnchoredMatViT(MatViT):
    """A `MatViT` with two sets of weights, one for the full size and one for all others.

    It has the fingerprint of the encoder that its full size comes from.

    Args:
        config: Architecture.
        preprocess: How images become its input.
        name: What to call the encoder.

    Attributes:
        backbone: Weights of the smaller sizes, which is what training works on.
        anchor: Weights of the full size, without a head; never trained.
    """

    def __init__(
        self, config: MatViTConfig, preprocess: Preprocess | None = None, name: str = "unnamed"
    ) -> None:
        super().__init__(config, preprocess, name)
        self.anchor = nested_vit(replace(config, num_classes=0)).requires_grad_(False).eval()

    @classmethod
    def join(cls, nested: MatViT, original: MatViT, name: str | None = None) -> AnchoredMatViT:
        """Return an encoder of copies: the full size of one model, the smaller ones of another.

        Classification heads are left behind.

        Args:
            nested: Where the smaller sizes come from.
            original: Where the full size comes from. If it has an anchor, that is its full size.
            name: What to call the encoder; None takes over that of `nested`.

        Raises:
            ValueError: If the two differ in architecture or preprocessing.
        """
        nested.check_alike(original, "serve the full size from")
        config = replace(nested.config, num_classes=0)
        model = cls(config, nested.preprocess, name or nested.name)
        weights = next(nested.parameters())
        model.to(weights.device, weights.dtype)
        model.start_from(nested)
        full = original.weights_of(original.submodel())
        model.anchor.load_state_dict(without_head(full.state_dict()))
        return model

    def weights_of(self, submodel: Submodel) -> VisionTransformer:
        """Return the weights that a submodel runs from: the anchor for the full size."""
        return self.anchor if submodel.is_full else self.backbone

    def vectors(
        self,
        images: Float[Tensor, "batch 3 height width"],
        submodels: Sequence[Submodel],
        memory: dict[Any, Memory] | None = None,
    ) -> Float[Tensor, "submodels batch dim"]:
        """Do what `MatViT.vectors` does, each submodel from its own weights.

        Raises:
            ValueError: If the images have another size than the model takes, or a submodel is not
                one of this model's.
        """
        self.check(images, submodels)
        vectors: dict[int, Tensor] = {}
        for weights in (self.anchor, self.backbone):
            rows = [row for row, each in enumerate(submodels) if self.weights_of(each) is weights]
            if rows:
                states = None if memory is None else memory[weights]
                tokens = run(weights, images, [submodels[row] for row in rows], states)
                vectors.update(zip(rows, pool(weights, tokens), strict=True))
        return torch.stack([vectors[row] for row in range(len(submodels))])
