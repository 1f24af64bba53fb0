"""What training minimises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize

from matvit.model import MatViT
from matvit.submodel import Submodel
from matvit.training.schedule import Phase
from matvit.training.teacher import Lesson

_TEMPERATURE = 0.1


def joint_cross_entropy(
    model: MatViT,
    images: Float[Tensor, "batch 3 height width"],
    labels: Int[Tensor, "batch"] | Float[Tensor, "batch classes"],
    submodels: Sequence[Submodel],
    weights: Sequence[float],
    *,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, "submodels"]]:
    """Classification loss of several submodels at once, weighted.

    All submodels share the head, so their embeddings are drawn to the same class directions:
    that is what lets one of them ask an index that another one filled.

    Args:
        model: What is trained.
        images: Normalised images.
        labels: Class indices, or shares of classes (mixed images).
        submodels: Sizes trained.
        weights: Weight of each size.
        label_smoothing: Share of the target spread over all classes.

    Returns:
        The weighted mean over the submodels, and each submodel's own loss (detached).

    Raises:
        ValueError: If there is not one positive weight per submodel.

    References:
        MatFormer, section 3.2, equation 3 (there with weights summing to the number of sizes).
        https://arxiv.org/abs/2310.07707
    """
    _check_weights(submodels, weights)
    logits = model.classify(model.vectors(images, submodels)).float()
    repeated = torch.cat([labels] * len(submodels))
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
    *,
    neighbour_weight: float = 0.0,
    temperature: float = _TEMPERATURE,
) -> tuple[Float[Tensor, ""], Float[Tensor, "submodels"]]:
    """Distance of several submodels' embeddings from the vectors a database holds.

    Needs no labels. With the full size among the submodels, it is held near where it was, but not
    exactly there: an index made before must be built again.

    Args:
        model: What is trained.
        images: Normalised images.
        targets: Embeddings of the same images by the database encoder, of length one.
        submodels: Sizes trained.
        weights: Weight of each size.
        neighbour_weight: Weight of `neighbour_divergence`, beside 1 - cosine.
        temperature: Of that divergence.

    Returns:
        The weighted mean over the submodels, and each submodel's own loss (detached).

    Raises:
        ValueError: If there is not one positive weight per submodel.

    References:
        Regression onto the vectors of a fixed database encoder: Asymmetric metric learning for
        knowledge transfer, section 3.3. https://arxiv.org/abs/2006.16331
    """
    _check_weights(submodels, weights)
    vectors = normalize(model.vectors(images, submodels).float(), dim=-1)
    losses = 1 - (vectors * targets).sum(dim=-1).mean(dim=1)
    if neighbour_weight:
        losses = losses + neighbour_weight * neighbour_divergence(vectors, targets, temperature)
    return _weigh(losses, weights)


def distillation(
    model: MatViT,
    images: Float[Tensor, "batch 3 height width"],
    labels: Float[Tensor, "batch classes"],
    lesson: Lesson,
    submodels: Sequence[Submodel],
    weights: Sequence[float],
    *,
    terms: Phase,
    head: nn.Linear | None = None,
    bank: Float[Tensor, "bank dim"] | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, "submodels"]]:
    """Distance of several submodels from labels and from what a teacher says.

    Args:
        model: What is trained.
        images: Normalised images.
        labels: Shares of classes; of a single class they teach nothing.
        lesson: What the teacher says about these images.
        submodels: Sizes trained.
        weights: Weight of each size.
        terms: How much labels, scores, vectors and neighbours weigh.
        head: Maps vectors to the teacher's classes; without, its scores are left out.
        bank: Vectors of the teacher's that are neighbours in every batch.
        label_smoothing: Share of the target spread over all classes.

    Returns:
        The weighted mean over the submodels, and each submodel's own loss (detached).

    Raises:
        ValueError: If there is not one positive weight per submodel.

    References:
        Class scores of a larger network as targets: Distilling the knowledge in a neural network,
        section 2. https://arxiv.org/abs/1503.02531
        Similarities to a bank of images: SEED, section 3.2. https://arxiv.org/abs/2101.04731
    """
    _check_weights(submodels, weights)
    vectors = model.vectors(images, submodels)
    losses = torch.zeros(len(submodels), device=vectors.device)
    if terms.label_weight:
        scores = model.classify(vectors).float()
        entropy = [cross_entropy(each, labels, label_smoothing=label_smoothing) for each in scores]
        losses = losses + terms.label_weight * torch.stack(entropy)
    if terms.score_weight and head is not None and lesson.shares is not None:
        found = log_softmax(head(vectors).float(), dim=-1)
        divergence = kl_div(found, lesson.shares.expand_as(found), reduction="none")
        losses = losses + terms.score_weight * divergence.sum(dim=-1).mean(dim=1)
    unit = normalize(vectors.float(), dim=-1)
    if terms.vector_weight:
        losses = losses + terms.vector_weight * (
            1 - (unit * lesson.vectors).sum(dim=-1).mean(dim=1)
        )
    if terms.neighbour_weight:
        divergence = neighbour_divergence(unit, lesson.vectors, _TEMPERATURE, bank)
        losses = losses + terms.neighbour_weight * divergence
    return _weigh(losses, weights)


def neighbour_divergence(
    vectors: Float[Tensor, "submodels batch dim"],
    targets: Float[Tensor, "batch dim"],
    temperature: float,
    bank: Float[Tensor, "bank dim"] | None = None,
) -> Float[Tensor, "submodels"]:
    """How differently queries and database vectors see their neighbours in the batch.

    Each image asks the database vectors of the other images; the similarities become a
    distribution over them, once with the image's own database vector and once with its query
    vector. The result is the Kullback-Leibler divergence of the two, in nats, averaged over the
    images: zero where a query ranks and scores the others just as the database vector does. With
    a bank, its vectors are further neighbours of every image.

    References:
        Contextual similarity distillation for asymmetric image retrieval, section 3.3 (there
        over the nearest neighbours in the database). CVPR 2022.
    """
    others = targets if bank is None else torch.cat([targets, bank])
    itself = torch.eye(len(targets), len(others), dtype=torch.bool, device=targets.device)
    # In bfloat16 the rounding of similarities would be larger than their differences.
    with torch.autocast(targets.device.type, enabled=False):
        wanted = (targets @ others.T / temperature).masked_fill(itself, -torch.inf)
        given = (vectors @ others.T / temperature).masked_fill(itself, -torch.inf)
    # An image's similarity to itself is left out of both, as a finite zero: -inf - -inf is NaN.
    log_wanted = log_softmax(wanted, dim=-1).masked_fill(itself, 0.0)
    log_given = log_softmax(given, dim=-1).masked_fill(itself, 0.0)
    shares = log_wanted.exp().masked_fill(itself, 0.0)
    divergence = (shares * (log_wanted - log_given)).sum(dim=-1)
    mean: Tensor = divergence.mean(dim=-1)
    return mean


def _check_weights(submodels: Sequence[Submodel], weights: Sequence[float]) -> None:
    if len(weights) != len(submodels) or not submodels or min(weights) <= 0:
        raise ValueError(f"expected {len(submodels)} weights above 0, got {list(weights)}")


def _weigh(
    losses: Float[Tensor, "submodels"], weights: Sequence[float]
) -> tuple[Float[Tensor, ""], Float[Tensor, "submodels"]]:
    scale = losses.new_tensor(weights) / sum(weights)
    return (losses * scale).sum(), losses.detach()
