"""Encoders that run at any of their sizes: what they compute, who they are, how they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, UInt8
from msgspec import UNSET
from msgspec.structs import replace
from numpy import ndarray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from matvit.card import card_of
from matvit.checkpoint import (
    ANCHOR,
    FORMAT_VERSION,
    WEIGHTS,
    Settings,
    fitting,
    read_encoder,
    write_encoder,
)
from matvit.config import MatViTConfig
from matvit.cost import check_submodel, resolve_submodel
from matvit.encoder import Precision, Runtime
from matvit.identity import fingerprint_of, without_head
from matvit.nested import Memory, nested_vit, pool, run
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


class MatViT(nn.Module):
    """A Vision Transformer at any of its sizes, and how images become its input.

    Which submodel runs is an argument of every call and never state, so threads can use one
    model at several sizes at once.

    Args:
        config: Architecture.
        preprocess: How images become its input; defaults to ImageNet statistics at the model's
            own size.
        name: What to call the encoder in messages and manifests.
        drop_path_rate: Stochastic depth during training.

    Raises:
        ValueError: If the preprocessing produces another image size than the model takes.

    Attributes:
        backbone: The weights: a timm `VisionTransformer` of `NestedBlock`s.

    Examples:
        >>> model = MatViT.load("matvit-tiny64")
        >>> images = torch.zeros(2, 3, 64, 64)
        >>> model(images).shape, model(images, "4xS,2xXL").shape
        (torch.Size([2, 256]), torch.Size([2, 256]))
        >>> model.submodel("4xS,2xXL").widths
        (128, 128, 128, 128, 1024, 1024)
    """

    def __init__(
        self,
        config: MatViTConfig,
        preprocess: Preprocess | None = None,
        name: str = "unnamed",
        *,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.preprocess = preprocess or Preprocess(img_size=config.img_size)
        if self.preprocess.img_size != config.img_size:
            raise ValueError(
                f"preprocessing makes images of {self.preprocess.img_size} px, "
                f"the model takes {config.img_size}"
            )
        self.name, self.is_whole = name, True
        self.backbone = nested_vit(config, drop_path_rate)
        self._hashes: dict[VisionTransformer, tuple[object, str]] = {}
        self.eval()

    def submodel(self, spec: Submodel | Granularity | str | None = None) -> Submodel:
        """Resolve what a caller wrote into a submodel of this model; None is the full size.

        Raises:
            ValueError: If it cannot be read or belongs to another model.
        """
        return resolve_submodel(self.config, spec)

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        submodel: Submodel | str | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Embed normalised images with one submodel (None: the full size).

        Returns:
            Embeddings of length one, in the space that all submodels share.

        Raises:
            ValueError: If the images have another size than the model takes, or the submodel is
                not one of this model's.
        """
        return normalize(self.vectors(images, [self.submodel(submodel)])[0], dim=-1)

    def encode(
        self,
        images: Float[Tensor, "batch 3 height width"],
        submodel: Submodel | str | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Do what calling the model does; the name that all encoders share."""
        embeddings: Tensor = self(images, submodel)
        return embeddings

    def vectors(
        self,
        images: Float[Tensor, "batch 3 height width"],
        submodels: Sequence[Submodel],
        memory: dict[Any, Memory] | None = None,
    ) -> Float[Tensor, "submodels batch dim"]:
        """Embed normalised images with several submodels at once, sharing what they share.

        Args:
            images: Normalised images.
            submodels: What runs.
            memory: Of earlier runs on the same images, by their weights; see `run`.

        Returns:
            Pooled vectors, not normalised, one row per submodel: what training works on.

        Raises:
            ValueError: As when calling the model.
        """
        self.check(images, submodels)
        states = None if memory is None else memory[self.backbone]
        return pool(self.backbone, run(self.backbone, images, submodels, states))

    def classify(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch classes"]:
        """Class scores of vectors that are not normalised, from the head that training uses.

        Raises:
            ValueError: If the model was built without classes.
        """
        if self.config.num_classes == 0:
            raise ValueError("this encoder has no classification head (num_classes is 0)")
        logits: Tensor = self.backbone.head(vectors)
        return logits

    def check(self, images: Tensor, submodels: Sequence[Submodel] = ()) -> None:
        """Refuse images of another size than the model takes, and submodels of another model.

        Raises:
            ValueError: If there are any.
        """
        self.config.check_size(*images.shape[-2:])
        for submodel in submodels:
            check_submodel(self.config, submodel)

    def weights_of(self, submodel: Submodel) -> VisionTransformer:  # noqa: ARG002 -- all the same
        """Return the weights that a submodel runs from: here those of all sizes."""
        return self.backbone

    @property
    def fingerprint(self) -> str:
        """16 hex digits identifying architecture and weights of the full size (not the head)."""
        return self._hash(self.weights_of(self.submodel()))

    @property
    def weights_fingerprint(self) -> str:
        """The same of the weights that the smaller sizes run from."""
        return self._hash(self.backbone)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.parameters()).device

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
        memory: dict[Any, Memory] | None = None,
    ) -> Float32[ndarray, "submodels batch dim"]:
        """Embed a batch with some submodels; see `matvit.encoder.Encoder`."""
        with running(self, pixels, number_format) as images:
            vectors = normalize(self.vectors(images, submodels, memory), dim=-1)
            return vectors.float().cpu().numpy()

    def start_from(self, other: MatViT) -> None:
        """Take over the trained weights of another model, but for a head of other classes.

        Raises:
            ValueError: If it has another architecture or preprocessing.
        """
        self.check_alike(other, "start from")
        weights = other.backbone.state_dict()
        if other.config.num_classes != self.config.num_classes:
            weights = without_head(weights)
        self.backbone.load_state_dict(weights, strict=False)

    def check_alike(self, other: MatViT, purpose: str) -> None:
        """Refuse a model of another shape, that cannot exchange weights with this one.

        Raises:
            ValueError: If architecture (but for the classes) or preprocessing differ.
        """
        theirs = {**other.config.to_dict(), "num_classes": self.config.num_classes}
        if theirs != self.config.to_dict() or other.preprocess != self.preprocess:
            raise ValueError(
                f"cannot {purpose} {other.name}: its architecture or preprocessing differs"
            )

    @staticmethod
    def load(source: str | Path, *, device: str | torch.device = "cpu") -> MatViT:
        """Load a bundled encoder by name, from a folder that `save` wrote, or `hf-hub:owner/name`.

        Raises:
            FileNotFoundError: If there is neither; the message lists the bundled names.
            ValueError: If it is damaged, or an extracted submodel.
        """
        settings, files = read_encoder(source)
        if settings.submodel is not None:
            raise ValueError(
                f"{source} holds the extracted submodel {settings.submodel}, not a whole MatViT; "
                "load it with load_encoder"
            )
        with fitting(source):
            return whole_encoder(settings, files).to(device)

    def save(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        training: dict[str, Any] | None = None,
    ) -> Path:
        """Write weights, settings and fingerprints into a folder.

        Args:
            folder: Created if missing; an earlier encoder in it is replaced.
            dtype: Stored precision. With float16 the file is half as large, and the encoder it
                loads as (float32 values rounded to float16) has its own fingerprint. An anchor is
                never rounded.
            training: Anything worth remembering about how the weights came to be.

        Returns:
            The folder.
        """
        files = self._files(dtype)
        weights = fingerprint_of(self.config, arrays_of(files[WEIGHTS]))
        settings = Settings(
            format_version=FORMAT_VERSION,
            name=self.name,
            # Rounding may have changed the weights, but not those of an anchor.
            fingerprint=self.fingerprint if ANCHOR in files else weights,
            weights=weights,
            submodel=None,
            model=self.config,
            preprocess=self.preprocess,
            training=training or {},
            anchor=ANCHOR if ANCHOR in files else UNSET,
        )
        card = card_of(
            self.name, settings.fingerprint, self.config, self.preprocess, settings.training
        )
        contents = {name: file_of(files[name]) for name in files}
        return write_encoder(folder, settings, contents, card)

    def take_weights(self, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the tensors of the files of a checkpoint."""
        self.backbone.load_state_dict(dict(files[WEIGHTS]))

    def _files(self, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of each file, as they are stored."""
        return {WEIGHTS: stored(self.backbone.state_dict(), dtype)}

    def _hash(self, weights: VisionTransformer) -> str:
        """Hash weights, unless they are as they were when they were hashed before."""
        version = weights_version(weights)
        if weights not in self._hashes or self._hashes[weights][0] != version:
            found = fingerprint_of(self.config, arrays_of(weights.state_dict()))
            self._hashes[weights] = (version, found)
        return self._hashes[weights][1]


class AnchoredMatViT(MatViT):
    """A `MatViT` whose full size is another encoder's, bit for bit: it has two sets of weights.

    That is what a conversion makes: the smaller sizes are trained, and an index that was made
    with the original stays valid, since the full size is the original still. It has the
    fingerprint of the encoder that its full size comes from.

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
        """Return the weights that a submodel runs from: the anchor for the full width."""
        return self.anchor if submodel.is_wide else self.backbone

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
                outcomes = run(weights, images, [submodels[row] for row in rows], states)
                vectors.update(zip(rows, pool(weights, outcomes), strict=True))
        return torch.stack([vectors[row] for row in range(len(submodels))])

    def take_weights(self, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the tensors of the files of a checkpoint."""
        super().take_weights(files)
        self.anchor.load_state_dict(dict(files[ANCHOR]))

    def _files(self, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of each file, as they are stored."""
        exact = stored(self.anchor.state_dict(), torch.float32)
        anchor = {key: _lossless(value, dtype) for key, value in exact.items()}
        return {**super()._files(dtype), ANCHOR: anchor}


def whole_encoder(
    settings: Settings, files: Mapping[str, Mapping[str, Float32[ndarray, "..."]]]
) -> MatViT:
    """Make the encoder that the settings describe, of the tensors of each file.

    Raises:
        RuntimeError: If they do not fit.
    """
    kind = MatViT if settings.anchor is UNSET else AnchoredMatViT
    model = kind(settings.model, settings.preprocess, settings.name)
    model.take_weights({name: tensors_of(arrays) for name, arrays in files.items()})
    return model


def _lossless(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to a smaller type where that changes no value."""
    rounded = tensor.to(dtype)
    return (rounded if torch.equal(rounded.float(), tensor) else tensor).contiguous()
