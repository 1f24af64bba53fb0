from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import RECIPE, colours, same_weights

from matvit import writing
from matvit.config import MatViTConfig
from matvit.embedding import embed
from matvit.model import MatViT
from matvit.torch_runtime import to_input
from matvit.training.data import LabelledPixels
from matvit.training.run import LOG, STATE, load_state, log, save_state, top1_per_size, train
from matvit.training.schedule import Phase
from matvit.training.trainer import Trainer


def test_training_learns_every_size(tmp_path):
    recipe = replace(RECIPE, phases=(Phase(epochs=60, img_size=16),), ema_decay=0.9)
    model = train(recipe, colours(), tmp_path / "run", validation=colours(60), device="cpu")
    top1 = json.loads((tmp_path / "run" / "config.json").read_text())["training"]["top1"]
    assert set(top1) == {"S", "M", "L", "XL"}
    assert min(top1.values()) > 0.9
    assert same_weights(MatViT.load(tmp_path / "run"), model)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = train(RECIPE, colours(), tmp_path / "whole", device="cpu")
    trainer = Trainer(RECIPE, colours(), device="cpu")
    for _ in range(7):  # into the second phase
        trainer.train_step()
    (tmp_path / "cut").mkdir()
    torch.save(trainer.state(), tmp_path / "cut" / STATE)
    resumed = train(RECIPE, colours(), tmp_path / "cut", resume=True, device="cpu")
    assert same_weights(whole, resumed)


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


def test_a_flipped_bit_anywhere_in_a_state_is_found(tmp_path):
    state = {"step": 3, "model": {"weight": torch.arange(600.0)}, "note": "x" * 500}
    save_state(state, tmp_path)
    content = (tmp_path / STATE).read_bytes()
    for offset in range(0, len(content), len(content) // 200):
        changed = bytearray(content)
        changed[offset] ^= 1 << offset % 8
        (tmp_path / STATE).write_bytes(changed)
        try:
            found = load_state(tmp_path / STATE)
        except ValueError as error:
            assert STATE in str(error)  # noqa: PT017 -- a bit of the seal itself loses nothing
        else:
            assert offset >= len(content) - 80
            assert torch.equal(found["model"]["weight"], state["model"]["weight"])


def test_a_full_disk_is_called_one_and_the_state_before_stays(tmp_path, monkeypatch):
    save_state({"step": 3}, tmp_path)

    def full(stream, data):
        stream.failed = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise stream.failed

    monkeypatch.setattr(writing._Noting, "write", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        save_state({"step": 4}, tmp_path)
    assert raised.value.filename == str(tmp_path / STATE)
    assert load_state(tmp_path / STATE) == {"step": 3}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk here")  # noqa: PTH110
def test_log_on_a_full_disk_is_named(tmp_path):
    (tmp_path / LOG).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as raised:
        log(tmp_path, {"step": 1})
    assert raised.value.filename == str(tmp_path / LOG)


def test_a_state_without_a_seal_still_loads(tmp_path):
    torch.save({"step": 3, "model": torch.ones(5)}, tmp_path / STATE)
    assert load_state(tmp_path / STATE)["step"] == 3


@pytest.mark.parametrize("junk", [b"", b"junk", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\x00."])
def test_what_is_no_state_is_said_to_be_none(tmp_path, junk):
    (tmp_path / STATE).write_bytes(junk)
    with pytest.raises(ValueError, match="cannot read .*; start again in another folder"):
        load_state(tmp_path / STATE)


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(FileExistsError, match="is not empty; choose another folder, or resume"):
        train(RECIPE, colours(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing to resume in .*: no state\.pt"):
        train(RECIPE, colours(), tmp_path, resume=True)
    assert (tmp_path / "precious.txt").read_text() == "x"


def test_the_log_and_the_recipe_are_readable(tmp_path):
    recipe = replace(RECIPE, phases=(Phase(epochs=20, img_size=16),))
    train(recipe, colours(), tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 50
    assert set(lines[0]["loss"]) == {"S", "M", "L", "XL"}
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["name"] == "test"


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


def test_mixed_images_train(tmp_path):
    recipe = replace(
        RECIPE, phases=(Phase(epochs=60, img_size=16),), ema_decay=0.9, mixup=0.2, cutmix=1.0
    )
    train(recipe, colours(), tmp_path / "run", validation=colours(60), device="cpu")
    top1 = json.loads((tmp_path / "run" / "config.json").read_text())["training"]["top1"]
    assert min(top1.values()) > 0.9


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


def test_top1_is_the_share_of_right_answers_of_each_size():
    torch.manual_seed(0)
    config = MatViTConfig(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    model = MatViT(config)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, 10)
    found = top1_per_size(model, LabelledPixels(pixels, labels, ["a", "b", "c"], 0), batch_size=4)
    for size, share in found.items():
        with torch.no_grad():
            vectors = model.vectors(to_input(pixels, model), [model.submodel(size)])
            scores = model.classify(vectors)[0]
        assert share == (scores.argmax(dim=1).numpy() == labels).mean()
    assert list(found) == ["S", "M", "L", "XL"]
