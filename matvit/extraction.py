"""A submodel as a stand-alone encoder: a plain timm ViT with narrower feed-forward networks.

This is what a phone carries: only the weights it uses. It keeps the fingerprint of the model it
was cut from, so it may ask that model's indexes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from msgspec.structs import replace
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from matvit import checkpoint
from matvit.config import MatViTConfig
from matvit.cost import check_submodel
from matvit.layers import ACTIVATIONS, timm_arguments
from matvit.model import MatViT
from matvit.preprocess import Preprocess
from matvit.submodel import Granularity, Submodel


class ExtractedViT(VisionTransformer):
    """A timm `VisionTransformer` that remembers which encoder it was cut from.

    Modules, forward pass and state dict are timm's own; only the feed-forward networks have the
    widths of the submodel, and the head scales embeddings to length one.

    Args:
        config: Architecture of the full model.
        submodel: The part that was cut out.
        preprocess: How images become its input.
        name: Name of the full encoder.
        fingerprint: Fingerprint of the full encoder.
    """

    def __init__(
        self,
        config: MatViTConfig,
        submodel: Submodel,
        preprocess: Preprocess,
        name: str,
        fingerprint: str,
    ) -> None:
        check_submodel(config, submodel)
        super().__init__(**timm_arguments(replace(config, num_classes=0)))
        for block, width in zip(self.blocks, submodel.widths, strict=True):
            block.mlp = Mlp(config.embed_dim, width, act_layer=ACTIVATIONS[config.act_layer])
        setattr(self, "head", UnitNorm())  # noqa: B010 -- timm declares a linear head or none
        self.config, self.preprocess = config, preprocess
        self.name, self.widths = name, submodel
        self._fingerprint = fingerprint
        self._weights = ""
        self._checked: object = None
        self.eval()

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the full encoder, as long as the weights are those cut out of it.

        Raises:
            ValueError: If the weights have changed since.
        """
        state = checkpoint.weights_version(self)
        if state != self._checked:
            if checkpoint.fingerprint(self.config, self.state_dict()) != self._weights:
                raise ValueError(
                    f"the weights of this submodel of {self.name} have changed since it was "
                    "extracted; it no longer speaks for that encoder"
                )
            self._checked = state
        return self._fingerprint

    @property
    def weights_fingerprint(self) -> str:
        """Fingerprint of the weights that were cut out: those of the one size that there is."""
        return self._weights

    def take_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights cut out of the full encoder; from now on a change is noticed."""
        self.load_state_dict(dict(tensors))
        self._weights = checkpoint.fingerprint(self.config, self.state_dict())

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.parameters()).device

    def submodel(self, spec: Submodel | Granularity | str | None = None) -> Submodel:
        """Return the one size that there is; None asks for it too.

        Raises:
            ValueError: If `spec` is another submodel, or cannot be read.
        """
        depth, hidden_dim = self.config.depth, self.config.hidden_dim
        wanted = (
            Submodel.parse(spec, depth=depth, hidden_dim=hidden_dim)
            if isinstance(spec, str)
            else spec
        )
        if wanted is not None and wanted != self.widths:
            raise ValueError(
                f"this encoder is the extracted submodel {self.widths} and holds no {wanted}; "
                "use the full model for other sizes"
            )
        return self.widths

    def encode(
        self,
        images: Float[Tensor, "batch 3 height width"],
        submodel: Submodel | str | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Embed normalised images, to length one.

        Raises:
            ValueError: If another submodel is asked for.
        """
        self.submodel(submodel)
        embeddings: Tensor = self(images)
        return embeddings


class UnitNorm(nn.Module):
    """Scales vectors to length one."""

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return `x` divided by its length."""
        return normalize(x, dim=-1)


def extract(model: MatViT, submodel: Submodel | str | None = None) -> ExtractedViT:
    """Cut a submodel out of a MatViT.

    Returns:
        A plain ViT that gives the vectors `model(images, submodel)` gives. The full size of a
        converted encoder is the encoder that it was converted from.

    Raises:
        ValueError: If the submodel is not one of the model's.
    """
    chosen = model.submodel(submodel)
    small = ExtractedViT(model.config, chosen, model.preprocess, model.name, model.fingerprint)
    reference = next(model.parameters())
    small.to(reference.device, reference.dtype)
    small.take_weights(_slice(model.weights_of(chosen).state_dict(), chosen))
    return small


def save_extracted(
    encoder: ExtractedViT, folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> Path:
    """Write an extracted encoder; see `checkpoint.write`."""
    stored = checkpoint.Checkpoint(
        name=encoder.name,
        config=encoder.config,
        preprocess=encoder.preprocess,
        tensors=encoder.state_dict(),
        submodel=str(encoder.widths),
        fingerprint=encoder.fingerprint,
    )
    return checkpoint.write(folder, stored, dtype=dtype)


def load_extracted(folder: str | Path) -> ExtractedViT:
    """Read an extracted encoder back.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or a whole MatViT.
    """
    stored = checkpoint.read(folder)
    if stored.submodel is None:
        raise ValueError(f"{folder} holds a whole MatViT; load it with MatViT.load")
    return _from_checkpoint(stored, folder)


def load_encoder(
    source: str | Path, *, device: str | torch.device = "cpu"
) -> MatViT | ExtractedViT:
    """Load whatever encoder is there: a whole MatViT, or a submodel extracted from one.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged.
    """
    stored = checkpoint.read(source)
    if stored.submodel is None:
        return MatViT.from_checkpoint(stored).to(device)
    return _from_checkpoint(stored, source).to(device)


def _from_checkpoint(stored: checkpoint.Checkpoint, source: str | Path) -> ExtractedViT:
    config = stored.config
    assert stored.submodel is not None
    submodel = Submodel.parse(stored.submodel, depth=config.depth, hidden_dim=config.hidden_dim)
    encoder = ExtractedViT(config, submodel, stored.preprocess, stored.name, stored.fingerprint)
    try:
        encoder.take_weights(stored.tensors)
    except RuntimeError as error:
        raise ValueError(f"the weights in {source} do not fit its settings: {error}") from error
    return encoder


def _slice(tensors: Mapping[str, Tensor], submodel: Submodel) -> dict[str, Tensor]:
    """Keep the first hidden units of every block, and leave the classification head behind."""
    kept = {key: value for key, value in tensors.items() if not key.startswith("head.")}
    for block, width in enumerate(submodel.widths):
        mlp = f"blocks.{block}.mlp"
        kept[f"{mlp}.fc1.weight"] = kept[f"{mlp}.fc1.weight"][:width]
        kept[f"{mlp}.fc1.bias"] = kept[f"{mlp}.fc1.bias"][:width]
        kept[f"{mlp}.fc2.weight"] = kept[f"{mlp}.fc2.weight"][:, :width]
    return kept
