"""Conversion: the original stays, the small sizes come closer, a stopped one goes on."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from msgspec import structs

from matvit.config import MatViTConfig
from matvit.conversion import conversion as module
from matvit.conversion.conversion import (
    CUT,
    REORDERED,
    TRAINED,
    conversion_recipe,
    convert,
    full_size_of,
    split,
)
from matvit.embedding import embed
from matvit.model import MatViT
from matvit.preprocess import Preprocess
from matvit.training.data import LabelledPixels
from matvit.training.recipes import recipe as find_recipe
from matvit.training.trainer import Trainer

CONFIG = MatViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3)
SEEN = Preprocess(img_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop_pct=0.9)


def build() -> MatViT:
    torch.manual_seed(0)
    model = MatViT(CONFIG, SEEN, "original")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def pictures(count: int = 40, seed: int = 0) -> LabelledPixels:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    pixels = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return LabelledPixels(pixels, np.zeros(count, dtype=np.int64), ["unlabelled"], 0)


def quick(model: MatViT, images: int = 40, epochs: float = 6):
    return conversion_recipe(model, images, epochs=epochs, batch_size=8)


def same_weights(first: MatViT, second: MatViT) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_small_sizes_come_closer_and_the_full_one_stays(tmp_path):
    model, held_out = build(), pictures(seed=1).pixels
    stages = {}

    def watch(stage: str, encoder: MatViT) -> None:
        stages[stage] = embed(encoder, held_out, "S", precision="float32")

    out = tmp_path / "out"
    converted = convert(model, pictures(), out, quick(model), device="cpu", watch=watch)
    full = embed(model, held_out, precision="float32")
    cut, reordered, trained = (
        (stages[stage] * full).sum(axis=1).mean() for stage in (CUT, REORDERED, TRAINED)
    )
    assert cut < reordered < trained
    assert np.array_equal(embed(converted, held_out, precision="float32"), full)
    assert converted.fingerprint == model.fingerprint
    assert converted.preprocess == model.preprocess
    assert converted.name == "original-converted"


def test_the_encoder_remembers_where_it_comes_from(tmp_path):
    model = build()
    converted = convert(model, pictures(), tmp_path, quick(model, epochs=1), device="cpu", seed=4)
    assert same_weights(MatViT.load(tmp_path), converted)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md", "anchor.safetensors", "config.json", "model.safetensors", "recipe.json"
    ]  # fmt: skip
    training = json.loads((tmp_path / "config.json").read_text())["training"]
    assert training["converted_from"] == {"name": "original", "fingerprint": model.fingerprint}
    assert (training["images"], training["seed"]) == (40, 4)
    assert training["recipe"]["images"]["crop_pct"] == 0.9


def test_without_training_only_the_order_changes(tmp_path):
    model = build()
    stages = []
    converted = convert(
        model, pictures(), tmp_path, None, watch=lambda stage, encoder: stages.append(stage)
    )
    assert stages == [CUT, REORDERED]
    for before, after in zip(model.backbone.blocks, converted.backbone.blocks, strict=True):
        mine, theirs = before.mlp.fc1.bias, after.mlp.fc1.bias
        assert not torch.equal(mine, theirs)
        assert torch.equal(mine.sort().values, theirs.sort().values)
    assert MatViT.load(tmp_path).fingerprint == model.fingerprint


def test_a_stopped_conversion_goes_on_where_it_was(tmp_path, monkeypatch):
    model = build()
    whole = convert(model, pictures(), tmp_path / "whole", quick(model, epochs=2), device="cpu")
    step = Trainer.train_step

    def interrupted(self):
        if self.step == 7:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(model, pictures(), tmp_path / "cut", quick(model, epochs=2), device="cpu")
    monkeypatch.setattr(Trainer, "train_step", step)
    again = {"device": "cpu", "resume": True}
    with pytest.raises(ValueError, match="cannot resume in .*: it was begun with images .*, this"):
        convert(model, pictures(seed=1), tmp_path / "cut", quick(model, epochs=2), **again)
    with pytest.raises(FileExistsError, match="is not empty; choose another folder, or resume"):
        convert(model, pictures(), tmp_path / "cut", quick(model, epochs=2))
    monkeypatch.setattr(module, "reorder", None)  # as it was is on disk
    resumed = convert(model, pictures(), tmp_path / "cut", quick(model, epochs=2), **again)
    assert same_weights(resumed, whole)
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="is already converted; choose another folder"):
            convert(model, pictures(), tmp_path / "cut", quick(model), resume=resume)


def test_training_is_not_thrown_away(tmp_path, monkeypatch):
    model = build()

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(model, pictures(), tmp_path, quick(model, epochs=1), device="cpu")
    with pytest.raises(ValueError, match="has begun to train; resume it with training"):
        convert(model, pictures(), tmp_path, None, resume=True)
    assert (tmp_path / "conversion" / "run" / "state.pt").exists()


@pytest.mark.parametrize("trains", [True, False])
def test_only_the_encoder_that_it_was_begun_with_can_go_on(tmp_path, trains):
    """Another of the same shape would get the first one's hidden units under its own name."""
    first, second = build(), build()
    with torch.no_grad():
        second.backbone.pos_embed.add_(1)
    recipe = quick(first, epochs=1) if trains else None
    module._start(full_size_of(first), pictures(), tmp_path, resume=False)
    wanted = f"begun with encoder {first.fingerprint}, this is {second.fingerprint}; resume with"
    with pytest.raises(ValueError, match=wanted):
        convert(second, pictures(), tmp_path, recipe, device="cpu", resume=True)
    with pytest.raises(ValueError, match="begun with images"):
        convert(first, pictures(seed=1), tmp_path, recipe, device="cpu", resume=True)
    done = convert(first, pictures(), tmp_path, recipe, device="cpu", resume=True)
    assert done.fingerprint == first.fingerprint


def test_a_conversion_killed_while_it_tidies_up_can_go_on(tmp_path, monkeypatch):
    model, recipe = build(), quick(build(), epochs=1)
    whole = convert(model, pictures(), tmp_path / "whole", recipe, device="cpu")

    def killed(path, **options):
        shutil.rmtree(path, **options)
        raise KeyboardInterrupt

    out = tmp_path / "cut"
    monkeypatch.setattr(module, "_can_resume", lambda run: False)  # it removes things as well
    monkeypatch.setattr(module, "shutil", SimpleNamespace(rmtree=killed))
    with pytest.raises(KeyboardInterrupt):
        convert(model, pictures(), out, recipe, device="cpu")
    assert (out / "config.json").exists()
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="or resume the conversion in it"):
        convert(model, pictures(), out, recipe, device="cpu")
    again = convert(model, pictures(), out, recipe, device="cpu", resume=True)
    assert same_weights(again, whole)
    assert not (out / "conversion").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a number above 0, got nan"),
        ({"epochs": math.inf}, "epochs must be a number above 0, got inf"),
    ],
)
def test_nothing_is_not_taken_for_the_default(settings, message):
    with pytest.raises(ValueError, match=message):
        conversion_recipe(build(), 40, **settings)


def test_a_conversion_stopped_before_its_first_state_starts_its_training_anew(tmp_path):
    model = build()
    whole = convert(model, pictures(), tmp_path / "whole", quick(model, epochs=1), device="cpu")
    module._start(full_size_of(model), pictures(), tmp_path / "cut", resume=False)
    run = tmp_path / "cut" / "conversion" / "run"
    run.mkdir()
    (run / "recipe.json").write_text("{}")
    resumed = convert(
        model, pictures(), tmp_path / "cut", quick(model, epochs=1), device="cpu", resume=True
    )
    assert same_weights(resumed, whole)


def test_a_converted_encoder_can_be_converted_again(tmp_path):
    model = build()
    first = convert(model, pictures(), tmp_path / "first", None)
    again = convert(first, pictures(seed=1), tmp_path / "again", None)
    assert again.fingerprint == model.fingerprint
    assert same_weights(full_size_of(first), full_size_of(model))
    sorted_once = first.backbone.blocks[0].mlp.fc1.weight
    assert not torch.equal(sorted_once, model.backbone.blocks[0].mlp.fc1.weight)


def test_sizes_that_are_nested_already_keep_their_order(tmp_path):
    model = build()
    nested = MatViT(structs.replace(CONFIG, num_classes=0), SEEN, "nested")
    nested.start_from(convert(model, pictures(), tmp_path / "a", quick(model), device="cpu"))
    kept = convert(nested, pictures(), tmp_path / "b", None)
    assert same_weights(kept.backbone, nested.backbone)


def test_held_out_images_are_not_trained_on():
    data = pictures(40)
    twice = replace(data, pixels=np.concatenate([data.pixels, data.pixels[::-1]]))
    twice = replace(twice, labels=np.zeros(80, dtype=np.int64))
    shown, held_out = split(twice)
    assert (len(shown), len(held_out)) == (32, 8)
    seen = {image.tobytes() for image in shown.pixels}
    asked = {image.tobytes() for image in held_out.pixels}
    assert not seen & asked
    assert seen | asked == {image.tobytes() for image in data.pixels}
    assert len(split(pictures(100), most=5)[1]) == 5
    with pytest.raises(ValueError, match="at least 20 different images, got 19"):
        split(replace(twice, pixels=twice.pixels[21:40].repeat(2, axis=0)))


def test_the_recipe_is_fitted_to_the_encoder():
    base = find_recipe("align")
    fixed = conversion_recipe(build(), 1000, epochs=5, learning_rate=1e-4)
    assert {phase.img_size for phase in fixed.phases} == {16}
    assert sum(phase.epochs for phase in fixed.phases) == pytest.approx(5)
    assert (fixed.learning_rate, fixed.batch_size) == (1e-4, base.batch_size)
    assert fixed.preprocess() == SEEN
    for images, epochs in ((50_000, 2), (100, 30), (400_000, 1)):
        phases = conversion_recipe(build(), images).phases
        assert sum(phase.epochs for phase in phases) == pytest.approx(epochs)

    config = structs.replace(
        CONFIG, img_size=448, patch_size=14, embed_dim=1024, depth=24, dynamic_img_size=True
    )
    with torch.device("meta"):
        large = MatViT(config, Preprocess(img_size=448))
    fitted = conversion_recipe(large, 1_000_000)
    assert fitted.phases[-1].img_size == 448
    assert all(phase.img_size % 14 == 0 for phase in fitted.phases)
    assert {phase.micro_batch for phase in fitted.phases} == {8}
    assert fitted.learning_rate == pytest.approx(base.learning_rate / 4)
    assert sum(phase.epochs for phase in fitted.phases) == pytest.approx(1)


def test_a_recipe_without_steps_is_refused_before_anything_is_written():
    with pytest.raises(ValueError, match="recipe convert has no steps on 40 images"):
        conversion_recipe(build(), 40, epochs=0.01)
