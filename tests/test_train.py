from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from matvit import trainer as trainer_module
from matvit.config import MatViTConfig
from matvit.embed import embed
from matvit.model import MatViT
from matvit.recipes import Phase, Recipe
from matvit.run_folder import STATE
from matvit.train import train
from matvit.trainer import Trainer
from matvit.training_data import LabelledPixels

RECIPE = Recipe(
    name="test",
    model=MatViTConfig(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, dynamic_img_size=True
    ),
    phases=(
        Phase(epochs=2, img_size=8, sizes=("XL",), weights=(1.0,)),
        Phase(epochs=3, img_size=16),
    ),
    batch_size=8,
    drop_path_rate=0.2,
)


def colours(count: int = 30) -> LabelledPixels:
    """Noisy red, green and blue images, classes 0, 1 and 2."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    pixels = rng.integers(0, 80, (count, 16, 16, 3), dtype=np.uint8)
    pixels[np.arange(count), :, :, labels] += 150
    return LabelledPixels(pixels, labels, ["red", "green", "blue"], 0)


def same_weights(first: MatViT, second: MatViT) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_training_learns_every_size(tmp_path):
    recipe = replace(RECIPE, phases=(Phase(epochs=60, img_size=16),), ema_decay=0.9)
    model = train(recipe, colours(), tmp_path / "run", validation=colours(60), device="cpu")
    top1 = json.loads((tmp_path / "run" / "config.json").read_text())["training"]["top1"]
    assert set(top1) == {"S", "M", "L", "XL"}
    assert min(top1.values()) > 0.9
    assert same_weights(MatViT.load(tmp_path / "run"), model)


def test_the_seed_decides_everything():
    def weights(seed: int) -> torch.Tensor:
        trainer = Trainer(RECIPE, colours(), seed=seed, device="cpu")
        for _ in range(4):
            trainer.train_step()
        return trainer.model.backbone.blocks[0].mlp.fc1.weight.detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = train(RECIPE, colours(), tmp_path / "whole", device="cpu")
    trainer = Trainer(RECIPE, colours(), device="cpu")
    for _ in range(7):  # into the second phase
        trainer.train_step()
    (tmp_path / "cut").mkdir()
    torch.save(trainer.state(), tmp_path / "cut" / STATE)
    resumed = train(RECIPE, colours(), tmp_path / "cut", resume=True, device="cpu")
    assert same_weights(whole, resumed)


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


def test_a_run_can_start_from_the_weights_of_another(tmp_path):
    first = train(RECIPE, colours(), tmp_path / "first", device="cpu")
    trainer = Trainer(RECIPE, colours(), device="cpu", init=first)
    assert same_weights(trainer.model, first)
    assert same_weights(trainer.averaged, first)
    other = Trainer(
        RECIPE, replace(colours(), class_names=["a", "b", "c", "d"]), device="cpu", init=first
    )
    assert other.model.fingerprint == first.fingerprint
    train(RECIPE, colours(), tmp_path / "second", device="cpu", init=first)
    training = json.loads((tmp_path / "second" / "config.json").read_text())["training"]
    assert training["init"] == {
        "name": "test",
        "fingerprint": first.fingerprint,
        "weights": first.fingerprint,
    }


def test_aligning_draws_small_sizes_to_the_encoder_it_started_from(tmp_path):
    first = train(RECIPE, colours(), tmp_path / "first", device="cpu")
    phase = Phase(epochs=40, img_size=16, objective="align")
    recipe = replace(RECIPE, phases=(phase,), drop_path_rate=0.0, ema_decay=0.9)
    aligned = train(recipe, colours(), tmp_path / "aligned", init=first, device="cpu")
    pixels = colours(60).pixels
    database = embed(first, pixels)
    for size in ("S", "M", "L"):
        before = (embed(first, pixels, size) * database).sum(axis=1).mean()
        after = (embed(aligned, pixels, size) * database).sum(axis=1).mean()
        assert after > before
    assert (embed(aligned, pixels) * database).sum(axis=1).mean() > 0.99
    with pytest.raises(ValueError, match="goes on from an encoder; name it with init"):
        Trainer(recipe, colours(), device="cpu")


def test_a_recipe_that_goes_on_needs_something_to_go_on_from():
    with pytest.raises(ValueError, match="goes on from an encoder; name it with init"):
        Trainer(replace(RECIPE, needs_init=True), colours(), device="cpu")


def test_a_run_that_is_stopped_can_be_resumed_at_once(tmp_path, monkeypatch):
    whole = train(RECIPE, colours(), tmp_path / "whole", device="cpu")
    step = Trainer.train_step

    def interrupted(self):
        if self.step == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, colours(), tmp_path / "cut", device="cpu")
    monkeypatch.setattr(Trainer, "train_step", step)
    resumed = train(RECIPE, colours(), tmp_path / "cut", resume=True, device="cpu")
    assert same_weights(whole, resumed)


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / STATE).write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"cannot read .*state\.pt"):
        train(RECIPE, colours(), tmp_path, resume=True, device="cpu")


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


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(FileExistsError, match="is not empty; choose another folder, or resume"):
        train(RECIPE, colours(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing to resume in .*: no state\.pt"):
        train(RECIPE, colours(), tmp_path, resume=True)
    assert (tmp_path / "precious.txt").read_text() == "x"


def test_resuming_another_run_is_refused():
    state = Trainer(RECIPE, colours(), seed=1, device="cpu").state()
    with pytest.raises(ValueError, match="cannot resume: seed was 1 and is now 2"):
        Trainer(RECIPE, colours(), seed=2, device="cpu").restore(state)
    other = Trainer(replace(RECIPE, learning_rate=1.0), colours(), seed=1, device="cpu")
    with pytest.raises(ValueError, match="cannot resume: learning_rate was 0.002 and is now 1.0"):
        other.restore(state)


def test_the_log_and_the_recipe_are_readable(tmp_path):
    recipe = replace(RECIPE, phases=(Phase(epochs=20, img_size=16),))
    train(recipe, colours(), tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 50
    assert set(lines[0]["loss"]) == {"S", "M", "L", "XL"}
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["name"] == "test"


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
        scores = model.classify(model.pool(model.features(images, submodels)))
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


def test_losses_of_one_name_are_averaged():
    losses = trainer_module._by_name(["a", "b", "b"], torch.tensor([1.0, 2.0, 4.0]))
    assert {name: loss.item() for name, loss in losses.items()} == {"a": 1.0, "b": 3.0}
    phase = Phase(epochs=1, img_size=16, sizes=("XL", "random", "random"), weights=(1.0,) * 3)
    trained = Trainer(replace(RECIPE, phases=(phase,)), colours(), device="cpu").train_step()
    assert list(trained) == ["XL", "random"]


def test_a_teacher_other_than_the_start_is_what_sizes_are_drawn_to(tmp_path):
    start = train(RECIPE, colours(), tmp_path / "start", device="cpu")
    teacher = train(RECIPE, colours(), tmp_path / "teacher", device="cpu", seed=1)
    phase = Phase(epochs=40, img_size=16, objective="align")
    recipe = replace(RECIPE, phases=(phase,), drop_path_rate=0.0, ema_decay=0.9)
    aligned = train(
        recipe, colours(), tmp_path / "aligned", init=start, teacher=teacher, device="cpu"
    )
    pixels = colours(60).pixels
    wanted = embed(teacher, pixels)
    before, after = (
        (embed(model, pixels, "S") * wanted).sum(1).mean() for model in (start, aligned)
    )
    assert after > before + 0.05
    training = json.loads((tmp_path / "aligned" / "config.json").read_text())["training"]
    assert training["init"]["fingerprint"] == start.fingerprint
    assert training["teacher"]["fingerprint"] == teacher.fingerprint


def test_a_teacher_of_another_dimension_is_refused():
    init = MatViT(RECIPE.model)
    other = MatViT(replace(RECIPE.model, embed_dim=32))
    phase = Phase(epochs=1, img_size=16, objective="align")
    with pytest.raises(ValueError, match="vectors of dimension 32"):
        Trainer(replace(RECIPE, phases=(phase,)), colours(), init=init, teacher=other)


def test_mixed_images_train(tmp_path):
    recipe = replace(
        RECIPE, phases=(Phase(epochs=60, img_size=16),), ema_decay=0.9, mixup=0.2, cutmix=1.0
    )
    train(recipe, colours(), tmp_path / "run", validation=colours(60), device="cpu")
    top1 = json.loads((tmp_path / "run" / "config.json").read_text())["training"]["top1"]
    assert min(top1.values()) > 0.9


def test_layer_decay_reaches_the_update():
    def moved(layer_decay: float) -> float:
        trainer = Trainer(replace(RECIPE, layer_decay=layer_decay), colours(), device="cpu")
        before = trainer.model.backbone.blocks[0].attn.qkv.weight.detach().clone()
        trainer.train_step()
        after = trainer.model.backbone.blocks[0].attn.qkv.weight.detach()
        return float((after - before).norm())

    # Two layers before what follows the blocks: a quarter of the step.
    assert moved(0.5) == pytest.approx(moved(1.0) / 4, rel=1e-3)


def test_evaluation_goes_on_during_training_and_changes_nothing(tmp_path):
    plain = train(RECIPE, colours(), tmp_path / "plain", device="cpu")
    run = tmp_path / "run"
    watched = train(
        RECIPE, colours(), run, validation=colours(60), evaluate_every=2, device="cpu", workers=0
    )
    assert same_weights(plain, watched)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    # Three steps an epoch, five epochs; the last evaluation is that of the end.
    assert [line["step"] for line in lines] == [6, 12, 15]
    assert all(set(line["top1"]) == {"S", "M", "L", "XL"} for line in lines)


def test_validation_images_of_unknown_classes_are_refused_before_training(tmp_path):
    others = replace(colours(), class_names=["red", "green", "violet"])
    with pytest.raises(ValueError, match=r"classes \['violet'\] are not among the 3 trained"):
        train(RECIPE, colours(), tmp_path / "run", validation=others, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_state_is_not_saved_in_the_middle_of_a_step(tmp_path, monkeypatch):
    average = Trainer._average

    def interrupted(self):
        if self.step == 4:  # weights changed, their average not yet
            raise KeyboardInterrupt
        average(self)

    monkeypatch.setattr(Trainer, "_average", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, colours(), tmp_path / "cut", device="cpu")
    monkeypatch.setattr(Trainer, "_average", average)
    resumed = train(RECIPE, colours(), tmp_path / "cut", resume=True, device="cpu")
    assert same_weights(resumed, train(RECIPE, colours(), tmp_path / "whole", device="cpu"))


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
    fixed = replace(RECIPE, model=replace(RECIPE.model, dynamic_img_size=False))
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
    init = MatViT(replace(RECIPE.model, num_classes=3))

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
