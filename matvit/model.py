"""`MatViT`: one Vision Transformer that holds many encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from msgspec.structs import replace
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from matvit import backbone, checkpoint
from matvit.config import MatViTConfig
from matvit.cost import check_submodel
from matvit.preprocess import Preprocess
from matvit.submodel import Granularity, Submodel


class MatViT(nn.Module):
    """A timm `VisionTransformer` with nested feed-forward networks.

    Which submodel runs is an argument of every call and never state, so threads can use one
    model at several sizes at once.

    Usually all sizes are nested in one set of weights, `backbone`. A converted encoder (see
    `serve_full_size_from`) has a second one, `anchor`: the full size of the encoder that it was
    made from, unchanged. Then the full size runs there and every other one in `backbone`.

    Args:
        config: Architecture.
        preprocess: How images become its input; defaults to ImageNet statistics at the model's
            own size.
        name: What to call the encoder in messages and manifests.
        drop_path_rate: Stochastic depth during training.

    Raises:
        ValueError: If the preprocessing produces another image size than the model takes.

    References:
        MatFormer, section 3 (MatViT in section 4.2). https://arxiv.org/abs/2310.07707
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
        self.name = name
        self.backbone = backbone.build(config, drop_path_rate)
        self.anchor: VisionTransformer | None = None
        self._hashes: dict[bool, tuple[object, str]] = {}
        self.eval()

    @classmethod
    def load(cls, source: str | Path, *, device: str | torch.device = "cpu") -> MatViT:
        """Load a bundled encoder by name, or a checkpoint folder.

        Raises:
            FileNotFoundError: If there is neither; the message lists the bundled names.
            ValueError: If the checkpoint is damaged, or an extracted submodel.
        """
        stored = checkpoint.read(source)
        if stored.submodel is not None:
            raise ValueError(
                f"{source} holds the extracted submodel {stored.submodel}, not a whole MatViT; "
                "load it with matvit.extraction.load_extracted"
            )
        return cls.from_checkpoint(stored).to(device)

    @classmethod
    def from_checkpoint(cls, stored: checkpoint.Checkpoint) -> MatViT:
        """Build the model that a checkpoint describes.

        Raises:
            ValueError: If the weights do not fit the settings.
        """
        model = cls(stored.config, stored.preprocess, stored.name)
        try:
            model.backbone.load_state_dict(dict(stored.tensors))
            if stored.anchor is not None:
                model._set_anchor(stored.anchor)
        except RuntimeError as error:
            raise ValueError(
                f"the weights of {stored.name} do not fit its settings: {error}"
            ) from error
        return model

    def save(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        training: dict[str, Any] | None = None,
    ) -> Path:
        """Write weights, settings and fingerprint into `folder`; see `checkpoint.write`.

        Args:
            folder: Created if missing; an earlier checkpoint in it is replaced.
            dtype: Stored precision. With float16 the file is half as large, and the encoder it
                loads as (float32 values rounded to float16) has its own fingerprint. An anchor is
                never rounded.
            training: Anything worth remembering about how the weights came to be.
        """
        tensors = backbone.tensors(self.backbone)
        rounded = {key: value.to(dtype).float() for key, value in tensors.items()}
        return checkpoint.write(
            folder,
            checkpoint.Checkpoint(
                name=self.name,
                config=self.config,
                preprocess=self.preprocess,
                tensors=rounded,
                training=training or {},
                anchor=None if self.anchor is None else backbone.tensors(self.anchor),
            ),
            dtype=dtype,
        )

    def start_from(self, other: MatViT) -> None:
        """Take over the weights of another model, but for a head of other classes.

        Of a converted encoder these are the nested ones; its anchor stays behind.

        Raises:
            ValueError: If it has another architecture or preprocessing.
        """
        self._check_same_shape(other, "start from")
        weights = other.backbone.state_dict()
        if other.config.num_classes != self.config.num_classes:
            weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
        self.backbone.load_state_dict(weights, strict=False)

    def serve_full_size_from(self, original: MatViT) -> None:
        """From now on, the full size is that of another encoder, bit for bit.

        This model takes on its fingerprint, and its indexes stay valid. The anchor is a copy that
        is never trained; the smaller sizes go on running from this model's own weights.

        Args:
            original: Encoder of the same shape. If it is a converted one itself, its full size
                is what counts.

        Raises:
            ValueError: If it has another architecture or preprocessing.
        """
        self._check_same_shape(original, "serve the full size from")
        self._set_anchor(original.weights_of(original.submodel()).state_dict())

    def train(self, mode: bool = True) -> MatViT:
        """Switch stochastic depth on or off; an anchor never has any."""
        super().train(mode)
        if self.anchor is not None:
            self.anchor.eval()
        return self

    @property
    def fingerprint(self) -> str:
        """16 hex digits identifying architecture and weights of the full size (not the head)."""
        return self._hash(self.weights_of(self.submodel()))

    @property
    def weights_fingerprint(self) -> str:
        """16 hex digits identifying architecture and nested weights, those of the smaller sizes.

        Without an anchor this is `fingerprint`. Conversions of one encoder share that one, and
        differ in this one.
        """
        return self._hash(self.backbone)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.parameters()).device

    def submodel(self, spec: Submodel | Granularity | str | None = None) -> Submodel:
        """Resolve what a caller wrote into a submodel of this model; None is the full size.

        Raises:
            ValueError: If it cannot be read or belongs to another model.
        """
        depth, hidden_dim = self.config.depth, self.config.hidden_dim
        if spec is None:
            return Submodel.uniform(Granularity.XL, depth=depth, hidden_dim=hidden_dim)
        if isinstance(spec, str):
            return Submodel.parse(spec, depth=depth, hidden_dim=hidden_dim)
        check_submodel(self.config, spec)
        return spec

    def weights_of(self, submodel: Submodel) -> VisionTransformer:
        """Return the weights that a submodel runs from."""
        return self.anchor if self.anchor is not None and submodel.is_full else self.backbone

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
        chosen = [self.submodel(submodel)]
        return normalize(self.pool(self.features(images, chosen), chosen)[0], dim=-1)

    def encode(
        self,
        images: Float[Tensor, "batch 3 height width"],
        submodel: Submodel | str | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Do what calling the model does; the name that all encoders share."""
        embeddings: Tensor = self(images, submodel)
        return embeddings

    def features(
        self, images: Float[Tensor, "batch 3 height width"], submodels: Sequence[Submodel]
    ) -> Float[Tensor, "submodels batch tokens dim"]:
        """Run several submodels at once, computing what they share only once.

        Submodels with the same first k widths have the same hidden states up to there. Shared
        work is patch embedding, the attention of the first block, and all blocks of a common
        prefix; the attention of the rest runs as one batch.

        Returns:
            Tokens after the last block and norm, one row per submodel.
        """
        backbone.check_images(self.config, images)
        for submodel in submodels:
            check_submodel(self.config, submodel)
        if self.anchor is None:
            return backbone.run(self.backbone, images, submodels)
        tokens: dict[int, Tensor] = {}
        for weights in (self.anchor, self.backbone):
            rows = [row for row, each in enumerate(submodels) if self.weights_of(each) is weights]
            if rows:
                chosen = [submodels[row] for row in rows]
                tokens.update(zip(rows, backbone.run(weights, images, chosen), strict=True))
        return torch.stack([tokens[row] for row in range(len(submodels))])

    def pool(
        self,
        features: Float[Tensor, "*batch tokens dim"],
        submodels: Sequence[Submodel] | None = None,
    ) -> Float[Tensor, "*batch dim"]:
        """Reduce tokens to one vector per image, not normalised.

        Args:
            features: What `features` returned, or some of it.
            submodels: What ran. Needed only by a converted encoder that normalises after pooling:
                its full size has its own norm.

        Raises:
            ValueError: If it is needed and not given.
        """
        if self.anchor is None or isinstance(self.backbone.fc_norm, nn.Identity):
            return backbone.pool(self.backbone, features)
        if submodels is None:
            raise ValueError(
                f"{self.name} was converted, and normalises after pooling: its full size does so "
                "with other weights than the rest; say which submodels ran, one per row"
            )
        pairs = zip(features, submodels, strict=True)
        return torch.stack([backbone.pool(self.weights_of(each), row) for row, each in pairs])

    def classify(self, pooled: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch classes"]:
        """Class scores of pooled vectors, from the head that training uses.

        Raises:
            ValueError: If the model was built without classes.
        """
        if self.config.num_classes == 0:
            raise ValueError("this encoder has no classification head (num_classes is 0)")
        logits: Tensor = self.backbone.head(pooled)
        return logits

    def _hash(self, weights: VisionTransformer) -> str:
        """Return the fingerprint of the anchor or of the backbone, computed when they change."""
        known, state = self._hashes, checkpoint.weights_version(weights)
        which = weights is self.anchor
        if which not in known or known[which][0] != state:
            tensors = backbone.tensors(weights)
            known[which] = (state, checkpoint.fingerprint(self.config, tensors))
        return known[which][1]

    def _set_anchor(self, tensors: Mapping[str, Tensor]) -> None:
        reference = next(self.backbone.parameters())
        anchor = backbone.build(replace(self.config, num_classes=0))
        anchor.to(reference.device, reference.dtype)
        anchor.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("head.")})
        self.anchor = anchor.eval().requires_grad_(False)

    def _check_same_shape(self, other: MatViT, purpose: str) -> None:
        theirs = {**other.config.to_dict(), "num_classes": self.config.num_classes}
        if theirs != self.config.to_dict() or other.preprocess != self.preprocess:
            raise ValueError(
                f"cannot {purpose} {other.name}: its architecture or preprocessing differs"
            )
