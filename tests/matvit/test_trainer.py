from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from msgspec import structs
from tiny_training import RECIPE, colours, same_weights

from matvit.config import MatViTConfig
from matvit.model import MatViT
from matvit.training import trainer as trainer_module
from matvit.training.schedule import Phase, Recipe
from matvit.training.trainer import Trainer, build_optimizers


def test_the_seed_decides_everything():
    def weights(seed: int) -> torch.Tensor:
        trainer = Trainer(RECIPE, colours(), seed=seed, device="cpu")
        for _ in range(4):
            trainer.train_step()
        return trainer.model.backbone.blocks[0].mlp.fc1.weight.detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_splitting_a_batch_changes_only_rounding(monkeypatch):
    monkeypatch.setattr(trainer_module, "resolve_precision", lambda *_: torch.float32)
    monkeypatch.setattr(Trainer, "_update", lambda self: None)  # keep the gradients

    def step(micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        phase = Phase(epochs=1, img_size=16, micro_batch=micro_batch)
        trainer = Trainer(replace(RECIPE, phases=(phase,), drop_path_rate=0.0), colours())
        losses = torch.stack(list(trainer.train_step().values()))
        gradients = [parameter.grad.flatten() for parameter in trainer.model.parameters()]
        return losses, torch.cat(gradients)

    (whole, gradients), (parts, added_up) = step(8), step(3)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(added_up, gradients, rtol=1e-4, atol=1e-6)
    assert gradients.abs().max() > 1e-3


def test_a_phase_trains_its_sizes_and_no_others(monkeypatch):
    monkeypatch.setattr(Trainer, "_update", lambda self: None)
    phase = Phase(epochs=1, img_size=16, sizes=("S",), weights=(1.0,))
    trainer = Trainer(replace(RECIPE, phases=(phase,)), colours(), device="cpu")
    assert list(trainer.train_step()) == ["S"]
    reached = trainer.model.backbone.blocks[0].mlp.fc1.bias.grad != 0
    assert reached[:8].all()
    assert not reached[8:].any()


def test_a_recipe_that_goes_on_needs_something_to_go_on_from():
    with pytest.raises(ValueError, match="goes on from an encoder; name it with init"):
        Trainer(replace(RECIPE, needs_init=True), colours(), device="cpu")


def test_resuming_with_other_images_is_refused():
    state = Trainer(RECIPE, colours(), device="cpu").state()
    others = replace(colours(), pixels=255 - colours().pixels)
    with pytest.raises(ValueError, match="cannot resume: images was"):
        Trainer(RECIPE, others, device="cpu").restore(state)


def test_starting_from_another_architecture_is_refused(tiny_model):
    with pytest.raises(ValueError, match="cannot start from tiny: its architecture or preproc"):
        Trainer(RECIPE, colours(), device="cpu", init=tiny_model)


def test_the_averaged_weights_are_kept_and_differ_from_the_last(tmp_path):
    trainer = Trainer(RECIPE, colours(), device="cpu")
    for _ in range(5):
        trainer.train_step()
    assert not same_weights(trainer.averaged, trainer.model)
    assert not any(parameter.requires_grad for parameter in trainer.averaged.parameters())


def test_resuming_another_run_is_refused():
    state = Trainer(RECIPE, colours(), seed=1, device="cpu").state()
    with pytest.raises(ValueError, match="cannot resume: seed was 1 and is now 2"):
        Trainer(RECIPE, colours(), seed=2, device="cpu").restore(state)
    other = Trainer(replace(RECIPE, learning_rate=1.0), colours(), seed=1, device="cpu")
    with pytest.raises(ValueError, match="cannot resume: learning_rate was 0.002 and is now 1.0"):
        other.restore(state)


def of_epochs(first: float, cooldown: float | None = 0.25) -> Recipe:
    phases = (replace(RECIPE.phases[0], epochs=first), RECIPE.phases[1])
    return replace(RECIPE, phases=phases, cooldown=cooldown, warmup_steps=2)


def test_a_run_at_its_peak_may_become_longer_or_less_long():
    short = Trainer(of_epochs(6), colours(), device="cpu")
    for _ in range(4):
        short.train_step()
    for epochs in (5.0, 20.0):
        other = Trainer(of_epochs(epochs), colours(), device="cpu")
        other.restore(short.state())
        assert other.step == 4
        assert same_weights(other.model, short.model)
        other.train_step()


def test_a_run_that_is_cooling_down_keeps_its_length():
    message = "cannot resume: phases was .*; resume with what the run was started with"
    for begun, step in ((of_epochs(6), 19), (of_epochs(6), 0), (of_epochs(6, None), 4)):
        state = Trainer(begun, colours(), device="cpu").state() | {"step": step}
        longer = replace(of_epochs(20), cooldown=begun.cooldown)
        with pytest.raises(ValueError, match=message):
            Trainer(longer, colours(), device="cpu").restore(state)


def test_a_run_at_its_peak_changes_nothing_but_its_length():
    state = Trainer(of_epochs(6), colours(), device="cpu").state() | {"step": 4}
    other = replace(of_epochs(20), mixup=0.5)
    with pytest.raises(ValueError, match=r"mixup was 0.0 and is now 0.5"):
        Trainer(other, colours(), device="cpu").restore(state)


def test_a_loss_that_is_not_finite_stops_the_run():
    trainer = Trainer(RECIPE, colours(), device="cpu")
    with torch.no_grad():
        trainer.model.backbone.patch_embed.proj.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        trainer.train_step()


def widths_trained(phase: Phase, monkeypatch, steps: int = 40) -> list[list[str]]:
    """Names of the submodels that each step trains."""
    monkeypatch.setattr(Trainer, "_update", lambda self: setattr(self, "step", self.step + 1))
    seen: list[list[str]] = []

    def recorded(model, images, labels, submodels, weights, **_):
        seen.append([str(submodel) for submodel in submodels])
        scores = model.classify(model.vectors(images, submodels))
        return scores.mean(), torch.zeros(len(submodels))

    monkeypatch.setattr(trainer_module, "joint_cross_entropy", recorded)
    trainer = Trainer(replace(RECIPE, phases=(phase,)), colours(), seed=3, device="cpu")
    for _ in range(steps):
        trainer.train_step()
    return seen


def test_sampled_training_takes_one_size_a_step_by_its_probability(monkeypatch):
    phase = Phase(epochs=200, img_size=16, sizes=("S", "XL"), weights=(1.0, 3.0), sampled=True)
    seen = widths_trained(phase, monkeypatch, steps=200)
    assert {len(names) for names in seen} == {1}
    share = sum(names == ["XL"] for names in seen) / 200
    assert 0.65 < share < 0.85  # 3/4, give or take three standard deviations


def test_random_sizes_change_from_step_to_step_and_place_to_place(monkeypatch):
    phase = Phase(epochs=50, img_size=16, sizes=("S", "random", "random"), weights=(1.0,) * 3)
    seen = widths_trained(phase, monkeypatch)
    assert {names[0] for names in seen} == {"S"}
    assert len({names[1] for names in seen}) > 3
    assert sum(names[1] != names[2] for names in seen) > 10
    assert seen == widths_trained(phase, monkeypatch)


def test_random_schedules_are_trained_beside_sizes_that_stay_as_they_were(monkeypatch):
    sizes = ("S", "random", "random~")
    phase = Phase(epochs=50, img_size=16, sizes=sizes, weights=(1.0,) * 3)
    seen = widths_trained(phase, monkeypatch)
    assert all("~" in names[2] for names in seen)
    assert len({names[2] for names in seen}) > 3
    before = replace(phase, sizes=("S", "random"), weights=(1.0,) * 2)
    assert [names[:2] for names in seen] == widths_trained(before, monkeypatch)


def test_losses_of_one_name_are_averaged():
    losses = trainer_module._by_name(["a", "b", "b"], torch.tensor([1.0, 2.0, 4.0]))
    assert {name: loss.item() for name, loss in losses.items()} == {"a": 1.0, "b": 3.0}
    phase = Phase(epochs=1, img_size=16, sizes=("XL", "random", "random"), weights=(1.0,) * 3)
    trained = Trainer(replace(RECIPE, phases=(phase,)), colours(), device="cpu").train_step()
    assert list(trained) == ["XL", "random"]


def test_a_teacher_of_another_dimension_is_refused():
    init = MatViT(RECIPE.model)
    other = MatViT(structs.replace(RECIPE.model, embed_dim=32))
    phase = Phase(epochs=1, img_size=16, objective="align")
    with pytest.raises(ValueError, match="vectors of dimension 32"):
        Trainer(replace(RECIPE, phases=(phase,)), colours(), init=init, teacher=other)


def test_layer_decay_reaches_the_update():
    def moved(layer_decay: float) -> float:
        trainer = Trainer(replace(RECIPE, layer_decay=layer_decay), colours(), device="cpu")
        before = trainer.model.backbone.blocks[0].attn.qkv.weight.detach().clone()
        trainer.train_step()
        after = trainer.model.backbone.blocks[0].attn.qkv.weight.detach()
        return float((after - before).norm())

    # Two layers before what follows the blocks: a quarter of the step.
    assert moved(0.5) == pytest.approx(moved(1.0) / 4, rel=1e-3)


def test_a_recipe_that_aligns_nothing_has_no_teacher():
    init = MatViT(RECIPE.model)
    assert Trainer(RECIPE, colours(), init=init, device="cpu").teacher is None
    with pytest.raises(ValueError, match="aligns nothing; leave the teacher out"):
        Trainer(RECIPE, colours(), init=init, teacher=init, device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": ("S", "XXL"), "weights": (1.0, 1.0)}, "unknown size 'XXL'"),
        ({"img_size": 12}, "multiple of 8, got 12"),
    ],
)
def test_a_later_phase_is_checked_before_the_first_step(settings, message):
    later = replace(RECIPE.phases[1], **settings)
    with pytest.raises(ValueError, match=message):
        Trainer(replace(RECIPE, phases=(RECIPE.phases[0], later)), colours(), device="cpu")


def test_an_encoder_of_one_image_size_is_not_trained_at_another():
    fixed = replace(RECIPE, model=structs.replace(RECIPE.model, dynamic_img_size=False))
    with pytest.raises(ValueError, match="trains at 8 px, but test takes 16 px only"):
        Trainer(fixed, colours(), device="cpu")


def test_a_resumed_run_with_everything_random_ends_where_the_whole_one_does(tmp_path):
    phases = (
        Phase(epochs=2, img_size=16, sizes=("S", "XL"), weights=(1.0, 2.0), sampled=True),
        Phase(
            epochs=2, img_size=16, sizes=("S", "random"), weights=(1.0, 1.0), objective="align",
            neighbour_weight=0.5,
        ),
    )  # fmt: skip
    recipe = replace(RECIPE, phases=phases, mixup=0.5, cutmix=1.0, grayscale=0.3)
    init = MatViT(structs.replace(RECIPE.model, num_classes=3))

    def start() -> Trainer:
        return Trainer(recipe, colours(31), seed=5, init=init, device="cpu")

    whole, first, second = start(), start(), start()
    steps = whole.schedule.total_steps
    for _ in range(steps):
        whole.train_step()
    for _ in range(steps // 3):
        first.train_step()
    second.restore(first.state())
    for _ in range(steps - steps // 3):
        second.train_step()
    assert same_weights(second.model, whole.model)
    assert same_weights(second.averaged, whole.averaged)


CONFIG = MatViTConfig(
    img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, reg_tokens=1
)


def test_every_parameter_is_updated_by_exactly_one_group():
    model = MatViT(CONFIG)
    groups = [
        group
        for optimizer in build_optimizers(model, learning_rate=1e-3, weight_decay=0.1)
        for group in optimizer.param_groups
    ]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


def test_only_weights_are_decayed():
    model = MatViT(CONFIG)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in build_optimizers(model, learning_rate=1e-3, weight_decay=0.1):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = name_of[id(parameter)]
                is_weight = name.endswith("weight") and "norm" not in name
                assert (group["weight_decay"] > 0) == is_weight, name


def test_muon_takes_the_matrices_of_the_blocks():
    model = MatViT(CONFIG)
    muon, adamw = build_optimizers(model, learning_rate=1e-3, weight_decay=0.1)
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert len(muon.param_groups[0]["params"]) == 4 * CONFIG.depth


def test_layer_decay_slows_earlier_layers_by_a_constant_factor():
    model = MatViT(CONFIG)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    built = build_optimizers(model, learning_rate=1e-3, weight_decay=0.1, layer_decay=0.5)
    scale_of = {
        name_of[id(parameter)].removeprefix("backbone."): (group["lr_scale"], group["lr"])
        for optimizer in built
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        "cls_token": 0.125,
        "reg_token": 0.125,
        "pos_embed": 0.125,
        "patch_embed.proj.weight": 0.125,
        "blocks.0.attn.qkv.weight": 0.25,
        "blocks.0.norm1.bias": 0.25,
        "blocks.1.mlp.fc2.weight": 0.5,
        "norm.weight": 1.0,
        "head.weight": 1.0,
    }
    for name, scale in expected.items():
        assert scale_of[name] == (scale, 1e-3 * scale), name
    assert len(scale_of) == len(name_of)
