from __future__ import annotations

import math

import pytest
import torch

from matvit.config import MatViTConfig
from matvit.model import MatViT
from matvit.training.losses import (
    Lesson,
    alignment,
    distillation,
    joint_cross_entropy,
    neighbour_divergence,
)
from matvit.training.schedule import Phase

CONFIG = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3)
SIZES = ("S", "M", "L", "XL")


@pytest.fixture
def model() -> MatViT:
    torch.manual_seed(0)
    return MatViT(CONFIG).double()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])


def one_by_one(model, batch, size, smoothing=0.0):
    images, labels = batch
    scores = model.classify(model.vectors(images, [model.submodel(size)]))[0]
    chances = scores.float().softmax(dim=1)
    target = torch.nn.functional.one_hot(labels, 3) * (1 - smoothing) + smoothing / 3
    return -(target * chances.log()).sum(dim=1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_joint_loss_is_the_weighted_mean_of_the_sizes(model, batch, smoothing):
    submodels = [model.submodel(size) for size in SIZES]
    weights = (1.0, 2.0, 3.0, 4.0)
    total, each = joint_cross_entropy(model, *batch, submodels, weights, label_smoothing=smoothing)
    alone = torch.stack([one_by_one(model, batch, size, smoothing) for size in SIZES])
    torch.testing.assert_close(each, alone.detach(), rtol=1e-5, atol=1e-5)  # logits are float32
    expected = (alone * torch.tensor(weights)).sum() / 10
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)


def test_joint_gradients_are_the_sum_of_separate_ones(model, batch):
    submodels = [model.submodel(size) for size in SIZES]
    joint_cross_entropy(model, *batch, submodels, (1.0,) * 4)[0].backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for size in SIZES:
        (one_by_one(model, batch, size) / 4).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], rtol=1e-4, atol=1e-6)


def test_alignment_is_the_mean_distance_from_the_targets(model, batch):
    images, _ = batch
    targets = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    submodels = [model.submodel("S"), model.submodel("XL")]
    total, each = alignment(model, images, targets, submodels, (1.0, 3.0))
    with torch.no_grad():
        vectors = [model(images, submodel).float() for submodel in submodels]
    distances = [
        sum(1 - float(v @ t) for v, t in zip(found, targets, strict=True)) / 5 for found in vectors
    ]
    assert each.tolist() == pytest.approx(distances, abs=1e-5)  # vectors are float32 there
    assert total.item() == pytest.approx((distances[0] + 3 * distances[1]) / 4, abs=1e-5)


def test_an_encoder_is_aligned_with_itself(model, batch):
    images, _ = batch
    full = model.submodel("XL")
    total, _ = alignment(model, images, model(images).float(), [full], (1.0,))
    assert total.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("weights", [(), (1.0,), (1.0, 0.0)])
def test_weights_must_be_one_per_size_and_positive(model, batch, weights):
    submodels = [model.submodel("S"), model.submodel("XL")]
    with pytest.raises(ValueError, match="expected 2 weights above 0"):
        joint_cross_entropy(model, *batch, submodels, weights)


def test_shares_of_classes_are_targets_too(model, batch):
    images, labels = batch
    submodels, weights = [model.submodel("S"), model.submodel("XL")], (1.0, 1.0)
    by_index = joint_cross_entropy(model, images, labels, submodels, weights)
    shares = torch.nn.functional.one_hot(labels, 3).float()
    by_share = joint_cross_entropy(model, images, shares, submodels, weights)
    torch.testing.assert_close(by_share, by_index)
    mixed = (shares + shares.flip(0)) / 2
    flipped = joint_cross_entropy(model, images, shares.flip(0), submodels, weights)
    blended = joint_cross_entropy(model, images, mixed, submodels, weights)
    # Cross-entropy is linear in its target.
    torch.testing.assert_close(blended[1], (by_share[1] + flipped[1]) / 2)


def neighbours_by_hand(vectors, targets, temperature):
    """Mean divergence of one submodel, in plain Python."""
    total = 0.0
    for row in range(len(targets)):
        others = [other for other in range(len(targets)) if other != row]
        distributions = []
        for asked in (targets[row], vectors[row]):
            likelihood = [math.exp(float(asked @ targets[o]) / temperature) for o in others]
            distributions.append([value / sum(likelihood) for value in likelihood])
        total += sum(p * math.log(p / q) for p, q in zip(*distributions, strict=True))
    return total / len(targets)


def test_neighbour_divergence_equals_the_sum_written_out():
    torch.manual_seed(1)
    unit = torch.nn.functional.normalize(torch.randn(3, 6, 4, dtype=torch.float64), dim=-1)
    *vectors, targets = unit
    found = neighbour_divergence(torch.stack(vectors), targets, 0.2)
    expected = [neighbours_by_hand(each, targets, 0.2) for each in vectors]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    same = neighbour_divergence(targets.unsqueeze(0), targets, 0.2)
    assert same.item() == pytest.approx(0, abs=1e-12)


def test_neighbour_divergence_is_added_by_its_weight_and_has_finite_gradients(model, batch):
    images, _ = batch
    targets = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    submodels = [model.submodel("S")]
    without = alignment(model, images, targets, submodels, (1.0,))[0]
    with_it = alignment(
        model, images, targets, submodels, (1.0,), neighbour_weight=0.5, temperature=0.3
    )[0]
    with torch.no_grad():
        vectors = model(images, "S").float()
    expected = 0.5 * neighbours_by_hand(vectors, targets, 0.3)
    assert (with_it - without).item() == pytest.approx(expected, rel=1e-4)  # float32
    with_it.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert gradients[0].abs().max() > 0


def test_neighbour_divergence_does_not_round_similarities_to_bfloat16():
    torch.manual_seed(2)
    targets = torch.nn.functional.normalize(torch.randn(32, 64), dim=-1)
    vectors = torch.nn.functional.normalize(targets + 0.01 * torch.randn(1, 32, 64), dim=-1)
    exact = neighbour_divergence(vectors, targets, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(neighbour_divergence(vectors, targets, 0.1), exact)


@pytest.fixture
def lesson() -> Lesson:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(5, 16, generator=generator)
    scores = torch.randn(5, 7, generator=generator)
    return Lesson(torch.nn.functional.normalize(vectors, dim=1), scores.softmax(dim=1))


@pytest.mark.parametrize("term", ["label_weight", "score_weight", "vector_weight"])
def test_each_term_of_a_distillation_is_what_its_name_says(batch, lesson, term):
    torch.manual_seed(0)
    model, head = MatViT(CONFIG), torch.nn.Linear(16, 7)
    images, labels = batch[0].float(), torch.nn.functional.one_hot(batch[1], 3).float()
    weights = {"label_weight": 0.0, "score_weight": 0.0, "vector_weight": 0.0, term: 2.0}
    phase = Phase(epochs=1, img_size=16, objective="distill", **weights)
    submodels = [model.submodel(size) for size in ("S", "XL")]
    total, each = distillation(
        model, images, labels, lesson, submodels, (1.0, 3.0), terms=phase, head=head
    )
    expected = []
    for submodel in submodels:
        vectors = model.vectors(images, [submodel])[0].detach()
        found = head(vectors).softmax(1)
        rows = {
            "label_weight": -(labels * model.classify(vectors).softmax(1).log()).sum(1),
            "score_weight": (lesson.shares * (lesson.shares / found).log()).sum(1),
            "vector_weight": 1 - (vectors * lesson.vectors).sum(1) / vectors.norm(dim=1),
        }
        expected.append(2 * rows[term].mean())
    torch.testing.assert_close(each, torch.stack(expected).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total.detach(), (each[0] + 3 * each[1]) / 4)
    total.backward()
    assert (head.weight.grad is not None) == (term == "score_weight")


def test_a_bank_is_more_neighbours_for_every_image(lesson):
    generator = torch.Generator().manual_seed(2)
    vectors, bank = (
        torch.nn.functional.normalize(torch.randn(*shape, 16, generator=generator), dim=-1)
        for shape in ((2, 5), (9,))
    )
    found = neighbour_divergence(vectors, lesson.vectors, 0.1, bank)
    everything = torch.cat([lesson.vectors, bank]).double()
    for row, of_size in enumerate(vectors):
        divergences = []
        for number in range(5):
            others = [place for place in range(14) if place != number]
            wanted = (everything[others] @ everything[number] / 0.1).softmax(0)
            given = (everything[others] @ of_size[number].double() / 0.1).softmax(0)
            divergences.append((wanted * (wanted / given).log()).sum())
        assert found[row].item() == pytest.approx(torch.stack(divergences).mean().item(), rel=1e-4)
