"""What training minimises."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from matvit.model import MatViT
from matvit.submodel import Submodel


def joint_cross_entropy(
    model: MatViT,
    images: Float[Tensor, "batch 3 height width"],
    labels: Int[Tensor, "batch"],
    submodels: Sequence[Submodel],
    weights: Sequence[float],
    *,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, "submodels"]]:
    """Classification loss of several submodels at once, weighted.

    All submodels share the head, so their embeddings are drawn to the same class directions:
    that is what lets one of them ask an index that another one filled.

    Returns:
        The weighted mean over the submodels, and each submodel's own loss (detached).

    Raises:
        ValueError: If there is not one positive weight per submodel.

    References:
        MatFormer, section 3.2, equation 3 (there with weights summing to the number of sizes).
        https://arxiv.org/abs/2310.07707
    """
    _check_weights(submodels, weights)
    logits = model.classify(model.pool(model.features(images, submodels))).float()
    repeated = labels.repeat(len(submodels))
    losses = cross_entropy(
        logits.flatten(0, 1), repeated, label_smoothing=label_smoothing, reduction="none"
    )
    return _weigh(losses.view(len(submodels), -1).mean(dim=1), weights)


def alignment(
    model: MatViT,
    images: Float[Tensor, "batch 3 height width"],
    targets: Float[Tensor, "batch dim"],
    submodels: Sequence[Submodel],
    weights: Sequence[float],
) -> tuple[Float[Tensor, ""], Float[Tensor, "submodels"]]:
    """Distance of several submodels' embeddings from the vectors a database holds.

    Needs no labels. With the full size among the submodels, the database encoder stays where it
    is while the smaller ones come closer.

    Args:
        model: What is trained.
        images: Normalised images.
        targets: Embeddings of the same images by the database encoder, of length one.
        submodels: Sizes trained.
        weights: Weight of each size.

    Returns:
        The weighted mean of 1 - cosine, and each submodel's own mean (detached).

    Raises:
        ValueError: If there is not one positive weight per submodel.

    References:
        Regression onto the vectors of a fixed database encoder: Asymmetric metric learning for
        knowledge transfer, section 3.3. https://arxiv.org/abs/2006.16331
    """
    _check_weights(submodels, weights)
    vectors = normalize(model.pool(model.features(images, submodels)).float(), dim=-1)
    return _weigh(1 - (vectors * targets).sum(dim=-1).mean(dim=1), weights)


def _check_weights(submodels: Sequence[Submodel], weights: Sequence[float]) -> None:
    if len(weights) != len(submodels) or not submodels or min(weights) <= 0:
        raise ValueError(f"expected {len(submodels)} weights above 0, got {list(weights)}")


def _weigh(
    losses: Float[Tensor, "submodels"], weights: Sequence[float]
) -> tuple[Float[Tensor, ""], Float[Tensor, "submodels"]]:
    scale = losses.new_tensor(weights) / sum(weights)
    return (losses * scale).sum(), losses.detach()
