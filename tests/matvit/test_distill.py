from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_teacher import TEACHER, asked, look
from tiny_training import RECIPE, colours, same_weights

from matvit.embedding import embed
from matvit.model import MatViT
from matvit.training import trainer as trainer_module
from matvit.training.augment import crop
from matvit.training.batches import Batches
from matvit.training.data import UNLABELLED
from matvit.training.run import STATE, load_state, save_state, train
from matvit.training.schedule import Phase
from matvit.training.teacher import ANSWERS, Said
from matvit.training.trainer import Trainer

CPU = torch.device("cpu")
PHASE = Phase(
    epochs=3,
    img_size=16,
    sizes=("S", "XL", "random"),
    weights=(1.0, 2.0, 1.0),
    objective="distill",
    neighbour_weight=0.5,
    resolutions=((8, 1.0), (16, 1.0)),
    micro_batch=4,
)
DISTILL = replace(
    RECIPE,
    phases=(
        PHASE,
        Phase(epochs=2, img_size=16, sizes=("S", "XL"), weights=(1.0, 1.0), objective="align"),
    ),
    mixup=0.8,
    cutmix=1.0,
    jitter=0.1,
    min_area=0.3,
    views=3,
)


def unlabelled():
    data = colours()
    return replace(data, labels=np.zeros_like(data.labels), class_names=[UNLABELLED])


def test_teacher_and_student_see_the_same_crop_and_their_lessons_are_mixed_alike(tmp_path):
    answers, data = asked(tmp_path), colours()
    plain = replace(DISTILL, mixup=0.0, cutmix=0.0, jitter=0.0)
    batches = Batches(plain, data, 0, CPU, answers=answers)
    pixels, crops, said = batches.fetch(4)  # in the second epoch
    images, _, lesson = batches.change(4, [pixels, crops, said], 16)
    shown = crop(pixels.permute(0, 3, 1, 2), crops, 16)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (
        plain.preprocess().mean, plain.preprocess().std
    ))  # fmt: skip
    torch.testing.assert_close(images, (shown / 255 - mean) / std)
    # The teacher enlarges with another filter; its mean colours hardly notice.
    expected = look(shown)
    torch.testing.assert_close(said[:, 12:].float(), expected.scores, rtol=0, atol=0.2)
    torch.testing.assert_close(lesson.shares, said[:, 12:].float().softmax(dim=1))
    mixed = Batches(replace(plain, mixup=0.8), data, 0, CPU, answers=answers)
    _, labels, blend = mixed.change(4, [pixels, crops, said], 16)
    one_hot = torch.nn.functional.one_hot(batches._labels[batches._rows(4)], 3).float()
    others = torch.arange(8) ^ 1
    pairs = [row for row in range(8) if not torch.equal(one_hot[row], one_hot[others[row]])]
    kept = (labels[pairs] * one_hot[pairs]).sum(dim=1)[0]
    assert 0 < kept < 1
    for found, alone in ((blend.vectors, lesson.vectors), (blend.shares, lesson.shares)):
        wanted = alone * kept + alone[others] * (1 - kept)
        if found is blend.vectors:
            wanted = torch.nn.functional.normalize(wanted, dim=1)
        torch.testing.assert_close(found, wanted)


def test_asked_about_whole_images_alone_a_teacher_lets_the_encoder_see_its_own_crops(tmp_path):
    answers, data = asked(tmp_path, views=1), colours()
    recipe = replace(DISTILL, views=1, mixup=0.0, cutmix=0.0)
    batches = Batches(recipe, data, 0, CPU, answers=answers)
    rows = batches._rows(4)
    pixels, said = batches.fetch(4)
    assert torch.equal(said, torch.from_numpy(answers.said[0, rows.numpy()]))
    shown = batches.change(4, [pixels, said], 16).images
    without = Batches(replace(recipe, phases=RECIPE.phases), data, 0, CPU)
    assert torch.equal(shown, without.change(4, [pixels], 16).images)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_parts_of_all_processes_are_the_whole_batch(count, tmp_path):
    answers, recipe = asked(tmp_path), replace(DISTILL, batch_size=12)
    whole = Batches(recipe, colours(), 1, CPU, answers=answers).load(2, 16)
    parts = [
        Batches(recipe, colours(), 1, CPU, process=(rank, count), answers=answers).load(2, 16)
        for rank in range(count)
    ]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    for name in ("vectors", "shares"):
        together = torch.cat([getattr(part.lesson, name) for part in parts])
        torch.testing.assert_close(together, getattr(whole.lesson, name))


def test_each_step_draws_its_resolution_and_smaller_inputs_come_in_larger_pieces(tmp_path):
    recipe = replace(
        DISTILL, phases=(replace(PHASE, epochs=100, resolutions=((8, 1.0), (16, 3.0))),)
    )
    batches = Batches(recipe, colours(), 0, CPU, answers=asked(tmp_path))
    sides = [batches.img_size(step) for step in range(300)]
    assert set(sides) == {8, 16}
    assert sides.count(16) / 300 == pytest.approx(0.75, abs=0.1)  # four deviations
    assert batches.micro_batches(sides.index(16)) == [range(4), range(4, 8)]
    assert batches.micro_batches(sides.index(8)) == [range(8)]


@pytest.mark.parametrize("stopped", [4, 11])  # while it distils, while it aligns
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, stopped):
    whole = train(DISTILL, colours(), tmp_path / "whole", teacher=TEACHER, device="cpu")
    trainer = Trainer(DISTILL, colours(), teacher=asked(tmp_path / "cut" / ANSWERS), device="cpu")
    for _ in range(stopped):
        trainer.train_step()
    save_state(trainer.state(), tmp_path / "cut")
    resumed = train(
        DISTILL, colours(), tmp_path / "cut", resume=True, teacher=TEACHER, device="cpu"
    )
    assert same_weights(whole, resumed)
    assert not any("guide" in name for name in MatViT.load(tmp_path / "whole").state_dict())
    training = json.loads((tmp_path / "whole" / "config.json").read_text())["training"]
    assert training["teacher"]["name"] == "colours"


def test_a_run_stopped_while_its_teacher_is_asked_goes_on(tmp_path):
    calls = []

    def killed(images):
        calls.append(images)
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(DISTILL, colours(), run, teacher=replace(TEACHER, look=killed), device="cpu")
    assert calls
    with pytest.raises(FileExistsError, match="or resume the run in it"):
        train(DISTILL, colours(), run, teacher=TEACHER, device="cpu")
    resumed = train(DISTILL, colours(), run, teacher=TEACHER, device="cpu", resume=True)
    whole = train(
        DISTILL,
        colours(),
        tmp_path / "whole",
        teacher=TEACHER,
        device="cpu",
        cache=tmp_path / "kept",
    )
    assert same_weights(whole, resumed)
    assert list((tmp_path / "kept").glob("*.f16"))
    assert not (tmp_path / "whole" / ANSWERS).exists()


def test_resuming_with_another_teacher_is_refused(tmp_path):
    state = Trainer(DISTILL, colours(), teacher=asked(tmp_path), device="cpu").state()
    other = asked(tmp_path, replace(TEACHER, name="another"))
    with pytest.raises(ValueError, match="cannot resume: teacher was"):
        Trainer(DISTILL, colours(), teacher=other, device="cpu").restore(state)


def test_splitting_a_batch_changes_only_rounding(monkeypatch, tmp_path):
    monkeypatch.setattr(trainer_module, "resolve_precision", lambda *_: torch.float32)
    monkeypatch.setattr(Trainer, "_update", lambda self: None)  # keep the gradients
    answers = asked(tmp_path)

    def step(micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Not the neighbours: they are those of the piece.
        phase = replace(PHASE, micro_batch=micro_batch, neighbour_weight=0.0, resolutions=())
        recipe = replace(DISTILL, phases=(phase,), drop_path_rate=0.0)
        trainer = Trainer(recipe, colours(), teacher=answers, device="cpu")
        losses = torch.stack(list(trainer.train_step().values()))
        return losses, torch.cat([p.grad.flatten() for p in trainer._all.parameters()])

    (whole, gradients), (parts, added_up) = step(8), step(3)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(added_up, gradients, rtol=1e-4, atol=1e-6)
    assert gradients[-4:].abs().max() > 1e-4  # the guide learns too


def test_without_labels_every_size_comes_to_the_teachers_vectors(tmp_path):
    phase = Phase(epochs=60, img_size=16, objective="distill", neighbour_weight=0.5)
    recipe = replace(RECIPE, phases=(phase,), ema_decay=0.9, drop_path_rate=0.0, views=2)
    model = train(recipe, unlabelled(), tmp_path / "run", teacher=TEACHER, device="cpu")
    answers = asked(tmp_path / "run" / ANSWERS, views=2, min_area=recipe.min_area)
    wanted = answers.projection(16, recipe.whitening)(answers.bank(30)).numpy()
    colour = np.arange(30) % 3
    for size in ("S", "XL"):
        similar = embed(model, unlabelled().pixels, size) @ wanted.T
        assert (colour[similar.argmax(axis=1)] == colour).all()
        assert similar.diagonal().mean() > 0.85


def test_aligning_holds_on_to_the_encoder_that_distilling_has_made(tmp_path):
    trainer = Trainer(DISTILL, colours(), teacher=asked(tmp_path), device="cpu")
    for _ in range(9):
        trainer.train_step()
    assert "aligned_to" not in trainer.state()
    assert trainer.schedule.phase(trainer.step).objective == "align"
    made = {key: value.clone() for key, value in trainer.averaged.state_dict().items()}
    for _ in range(2):
        trainer.train_step()
    torch.testing.assert_close(trainer.state()["aligned_to"], made, rtol=0, atol=0)


def test_the_guide_is_kept_to_resume_with(tmp_path):
    train(DISTILL, colours(), tmp_path, teacher=TEACHER, device="cpu")
    state = load_state(tmp_path / STATE)
    assert set(state["guide"]) == {"weight", "bias"}
    assert state["guide"]["weight"].shape == (3, 16)


def test_the_guide_is_trained_as_a_head_is(tmp_path):
    trainer = Trainer(DISTILL, colours(), teacher=asked(tmp_path), device="cpu")
    muon, adamw = trainer.optimizers
    of_blocks = {id(p) for p in trainer.model.backbone.blocks.parameters() if p.ndim == 2}
    assert {id(p) for group in muon.param_groups for p in group["params"]} == of_blocks
    (weight,) = (
        group for group in adamw.param_groups
        if any(p is trainer.guide.weight for p in group["params"])
    )  # fmt: skip
    assert (weight["weight_decay"], weight["lr_scale"]) == (DISTILL.weight_decay, 1.0)
    before = trainer.guide.weight.clone()
    trainer.train_step()
    assert not torch.equal(trainer.guide.weight, before)


def test_a_recipe_and_its_teacher_must_go_together(tmp_path):
    answers = asked(tmp_path)
    with pytest.raises(ValueError, match="test learns from a teacher; name it with --teacher"):
        Trainer(DISTILL, colours(), device="cpu")
    with pytest.raises(ValueError, match="learns from no teacher; leave it out, or take a recipe"):
        Trainer(RECIPE, colours(), teacher=answers, device="cpu")
    scores_only = replace(DISTILL, phases=(replace(PHASE, vector_weight=0, neighbour_weight=0),))
    without = replace(TEACHER, classes=0, look=lambda images: Said(look(images).vectors, None))
    mute = asked(tmp_path / "mute", without)
    with pytest.raises(
        ValueError, match="class scores of a teacher, and this one knows no classes"
    ):
        Trainer(scores_only, colours(), teacher=mute, device="cpu")
    trainer = Trainer(DISTILL, colours(), teacher=mute, device="cpu")
    trainer.train_step()
    assert trainer.guide is None


def test_what_would_be_refused_is_refused_before_the_teacher_is_asked(tmp_path, tiny_model):
    def never(images):
        raise AssertionError

    teacher = replace(TEACHER, look=never)
    with pytest.raises(ValueError, match="cannot start from tiny"):
        train(DISTILL, colours(), tmp_path / "run", teacher=teacher, init=tiny_model, device="cpu")
