"""`MatViT`: one Vision Transformer that holds many encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from matvit import checkpoint
from matvit.config import MatViTConfig
from matvit.cost import check_submodel
from matvit.layers import NestedBlock, NestedMlp
from matvit.preprocess import Preprocess
from matvit.submodel import Granularity, Submodel


class MatViT(nn.Module):
    """A timm `VisionTransformer` with nested feed-forward networks.

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
        self.preprocess = preprocess or Preprocess(image_size=config.img_size)
        if self.preprocess.image_size != config.img_size:
            raise ValueError(
                f"preprocessing makes images of {self.preprocess.image_size} px, "
                f"the model takes {config.img_size}"
            )
        self.name = name
        self.backbone = VisionTransformer(
            **config.to_dict(),
            drop_path_rate=drop_path_rate,
            block_fn=NestedBlock,
            mlp_layer=NestedMlp,
        )
        self._fingerprint: tuple[object, str] | None = None
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
                "load it with matvit.extract.load_extracted"
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
                loads as (float32 values rounded to float16) has its own fingerprint.
            training: Anything worth remembering about how the weights came to be.
        """
        tensors = {key: value.to(dtype).float() for key, value in self._tensors().items()}
        return checkpoint.write(
            folder,
            checkpoint.Checkpoint(
                name=self.name,
                config=self.config,
                preprocess=self.preprocess,
                tensors=tensors,
                training=training or {},
            ),
            dtype=dtype,
        )

    def start_from(self, other: MatViT) -> None:
        """Take over the weights of another model, but for a head of other classes.

        Raises:
            ValueError: If it has another architecture or preprocessing.
        """
        theirs = {**other.config.to_dict(), "num_classes": self.config.num_classes}
        if theirs != self.config.to_dict() or other.preprocess != self.preprocess:
            raise ValueError(
                f"cannot start from {other.name}: its architecture or preprocessing differs"
            )
        weights = other.backbone.state_dict()
        if other.config.num_classes != self.config.num_classes:
            weights = {key: value for key, value in weights.items() if not key.startswith("head.")}
        self.backbone.load_state_dict(weights, strict=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits identifying architecture and weights (not the classification head)."""
        state = checkpoint.weights_version(self.backbone)
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, checkpoint.fingerprint(self.config, self._tensors()))
        return self._fingerprint[1]

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
        return normalize(self.pool(self.features(images, [self.submodel(submodel)])[0]), dim=-1)

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
        self._check_images(images)
        for submodel in submodels:
            check_submodel(self.config, submodel)
        states = [self._stem(images)]
        state_of = [0] * len(submodels)
        for index, block in enumerate(self.backbone.blocks):
            assert isinstance(block, NestedBlock)
            branches = [
                (state, submodel.widths[index])
                for state, submodel in zip(state_of, submodels, strict=True)
            ]
            distinct = list(dict.fromkeys(branches))
            attended = block.attend(torch.cat(states)).chunk(len(states))
            states = [block.feed_forward(attended[state], width) for state, width in distinct]
            state_of = [distinct.index(branch) for branch in branches]
        tokens: Tensor = self.backbone.norm(torch.stack([states[state] for state in state_of]))
        return tokens

    def pool(self, features: Float[Tensor, "*batch tokens dim"]) -> Float[Tensor, "*batch dim"]:
        """Reduce tokens to one vector per image, not normalised."""
        pooled: Tensor = self.backbone.forward_head(features.flatten(0, -3), pre_logits=True)
        return pooled.view(*features.shape[:-2], pooled.shape[-1])

    def classify(self, pooled: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch classes"]:
        """Class scores of pooled vectors, from the head that training uses.

        Raises:
            ValueError: If the model was built without classes.
        """
        if self.config.num_classes == 0:
            raise ValueError("this encoder has no classification head (num_classes is 0)")
        logits: Tensor = self.backbone.head(pooled)
        return logits

    def _stem(self, images: Float[Tensor, "batch 3 height width"]) -> Tensor:
        """Everything before the first block: patches, positions, prefix tokens."""
        patches = self.backbone.patch_drop(
            self.backbone._pos_embed(self.backbone.patch_embed(images))
        )
        tokens: Tensor = self.backbone.norm_pre(patches)
        return tokens

    def _check_images(self, images: Tensor) -> None:
        size, patch = self.config.img_size, self.config.patch_size
        height, width = images.shape[-2:]
        if self.config.dynamic_img_size:
            if height % patch or width % patch or not height or not width:
                raise ValueError(f"image sides must be multiples of {patch}, got {height}x{width}")
        elif (height, width) != (size, size):
            raise ValueError(f"this encoder takes {size}x{size} images, got {height}x{width}")

    def _tensors(self) -> dict[str, Tensor]:
        """Weights under timm's names, detached, on the CPU."""
        return {
            key: value.detach().to("cpu", torch.float32)
            for key, value in self.backbone.state_dict().items()
        }
