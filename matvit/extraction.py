"""A submodel as a stand-alone encoder: a plain timm ViT with narrower feed-forward networks.

This is what a phone carries: only the weights it uses. It keeps the fingerprint of the model it
was cut from, so it may ask that model's indexes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from msgspec.structs import replace
from numpy import ndarray
from timm.layers.mlp import Mlp, SwiGLU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from matvit.checkpoint import FORMAT_VERSION, WEIGHTS, Settings, write_encoder
from matvit.config import MatViTConfig
from matvit.cost import check_submodel, resolve_submodel
from matvit.encoder import Memory, Precision, Runtime
from matvit.identity import fingerprint_of, without_head
from matvit.model import MatViT
from matvit.nested import ACTIVATIONS, timm_arguments
from matvit.preprocess import Preprocess
from matvit.submodel import Granularity, Submodel
from matvit.torch_runtime import (
    arrays_of,
    file_of,
    number_format,
    running,
    runtime_on,
    stored,
    tensors_of,
    weights_version,
)


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
            kind = SwiGLU if config.gated else Mlp
            block.mlp = kind(config.embed_dim, width, act_layer=ACTIVATIONS[config.act_layer])
        setattr(self, "head", UnitNorm())  # noqa: B010 -- timm declares a linear head or none
        self.config, self.preprocess = config, preprocess
        self.name, self._cut, self.is_whole = name, submodel, False
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
        state = weights_version(self)
        if state != self._checked:
            if fingerprint_of(self.config, arrays_of(self.state_dict())) != self._weights:
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
        self._weights = fingerprint_of(self.config, arrays_of(self.state_dict()))

    @classmethod
    def of(cls, settings: Settings, files: Mapping[str, Mapping[str, Any]]) -> ExtractedViT:
        """Make the submodel that the settings of a checkpoint describe, of its arrays.

        Raises:
            RuntimeError: If they do not fit.
        """
        config = settings.model
        cut = resolve_submodel(config, settings.submodel)
        small = cls(config, cut, settings.preprocess, settings.name, settings.fingerprint)
        small.take_weights(tensors_of(files[WEIGHTS]))
        return small

    def save(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        training: dict[str, Any] | None = None,
    ) -> Path:
        """Write weights, settings and fingerprints into a folder; see `MatViT.save`."""
        tensors = stored(self.state_dict(), dtype)
        settings = Settings(
            format_version=FORMAT_VERSION,
            name=self.name,
            fingerprint=self.fingerprint,
            weights=fingerprint_of(self.config, arrays_of(tensors)),
            submodel=str(self._cut),
            model=self.config,
            preprocess=self.preprocess,
            training=training or {},
        )
        return write_encoder(folder, settings, {WEIGHTS: file_of(tensors)})

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.parameters()).device

    def submodel(self, spec: Submodel | Granularity | str | None = None) -> Submodel:
        """Return the one size that there is; None asks for it too.

        Raises:
            ValueError: If `spec` is another submodel, or cannot be read.
        """
        return resolve_submodel(self.config, spec, self._cut)

    def weights_of(self, submodel: Submodel) -> ExtractedViT:  # noqa: ARG002 -- there is one size
        """Return itself."""
        return self

    @property
    def runtime(self) -> Runtime:
        """Torch, where the weights live."""
        return runtime_on(self.device)

    def number_format(self, precision: Precision = "auto", images: int | None = None) -> str:
        """Say in which numbers matrix products run; see `matvit.encoder.Encoder`."""
        return number_format(self, precision, images)

    def embed_pixels(
        self,
        pixels: UInt8[ndarray, "batch height width 3"],
        submodels: list[Submodel],
        number_format: str,
        memory: Memory | None = None,
    ) -> Float32[ndarray, "submodels batch dim"]:
        """Embed a batch; see `matvit.encoder.Encoder`."""
        assert memory is None, "an extracted submodel has nothing to go on with"
        with running(self, pixels, number_format) as images:
            vectors: ndarray = self(images).float().cpu().numpy()
        return np.stack([vectors] * len(submodels))

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
        ValueError: If the submodel is not one of the model's, or merges tokens.
    """
    chosen = model.submodel(submodel)
    if chosen.merged:
        raise ValueError(
            f"{chosen} merges tokens, which a plain timm model cannot; extract "
            f"{replace_fields(chosen, merged=())}, or write it as ONNX"
        )
    small = ExtractedViT(model.config, chosen, model.preprocess, model.name, model.fingerprint)
    reference = next(model.parameters())
    small.to(reference.device, reference.dtype)
    small.take_weights(_slice(model.weights_of(chosen).state_dict(), chosen))
    return small


def _slice(tensors: Mapping[str, Tensor], submodel: Submodel) -> dict[str, Tensor]:
    """Keep the first hidden units of every block, and leave the classification head behind."""
    kept = without_head(tensors)
    for block, width in enumerate(submodel.widths):
        mlp = f"blocks.{block}.mlp"
        for name in [name for name in kept if name.startswith(f"{mlp}.fc1")]:
            kept[name] = kept[name][:width]
        kept[f"{mlp}.fc2.weight"] = kept[f"{mlp}.fc2.weight"][:, :width]
    return kept
