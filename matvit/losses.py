"""What training minimises."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

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
    if len(weights) != len(submodels) or not submodels or min(weights) <= 0:
        raise ValueError(f"expected {len(submodels)} weights above 0, got {list(weights)}")
    logits = model.classify(model.pool(model.features(images, submodels))).float()
    repeated = labels.repeat(len(submodels))
    losses = cross_entropy(
        logits.flatten(0, 1), repeated, label_smoothing=label_smoothing, reduction="none"
    )
    per_submodel = losses.view(len(submodels), -1).mean(dim=1)
    scale = per_submodel.new_tensor(weights) / sum(weights)
    return (per_submodel * scale).sum(), per_submodel.detach()
