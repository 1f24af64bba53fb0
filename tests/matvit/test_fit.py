"""Second matrices fitted to the hidden units that are kept, against NumPy's least squares.

Mutants to catch: columns of a larger size fitted without the smaller ones; the residual stream of
the full size given to all sizes; layer scale left out, or divided by where it is 0; the bias cut.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from matvit.config import MatViTConfig
from matvit.conversion import reorder as ranking
from matvit.conversion.conversion import FITTED, convert
from matvit.conversion.fit import fit
from matvit.conversion.reorder import first_order, output_energy, reorder
from matvit.embedding import embed
from matvit.model import AnchoredMatViT, MatViT
from matvit.training.data import LabelledPixels

SIZES = ("S", "M", "L", "XL")


def build(depth: int = 2, init_values: float | None = None, seed: int = 0) -> MatViT:
    torch.manual_seed(seed)
    config = MatViTConfig(
        img_size=16, patch_size=4, embed_dim=16, depth=depth, num_heads=2, init_values=init_values
    )
    model = MatViT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Smooth pictures: neighbouring patches are alike, as in photographs."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (200, 4, 4, 3)).astype(np.float64)
    smooth = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return (smooth + rng.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8)


def nearness(model: MatViT, original: MatViT, pixels: np.ndarray, spec: str) -> float:
    full = embed(original, pixels, precision="float32")
    return float((embed(model, pixels, spec, precision="float32") * full).sum(axis=1).mean())


def test_of_one_block_it_is_the_least_squares_of_all_sizes_together(pixels):
    model = build(depth=1, init_values=0.5)
    block = model.backbone.blocks[0]
    found = fit(model, pixels, ridge=1e-12).backbone.blocks[0].mlp.fc2
    seen: dict[str, torch.Tensor] = {}
    block.norm2.register_forward_pre_hook(lambda _, inputs: seen.__setitem__("x", inputs[0]))
    block.mlp.act.register_forward_hook(lambda _m, _i, hidden: seen.__setitem__("h", hidden))
    chosen = pixels[:: -(-len(pixels) // (32 * 64 // 17))]
    images = torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (
        model.preprocess.mean, model.preprocess.std))  # fmt: skip
    with torch.inference_mode():
        model((images - mean) / std)
    hidden = seen["h"].flatten(0, 1).double().numpy()
    weight = block.mlp.fc2.weight.detach().double().numpy()
    wanted = hidden @ weight.T + block.mlp.fc2.bias.detach().double().numpy()
    rows, targets = [], []
    for width in (8, 16, 32, 64):
        kept = np.where(np.arange(64) < width, hidden, 0)
        rows.append(np.concatenate([kept, np.ones((len(kept), 1))], axis=1))
        targets.append(wanted)
    best = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets), rcond=None)[0]
    np.testing.assert_allclose(found.weight.detach().T, best[:-1], rtol=0, atol=2e-3)
    np.testing.assert_allclose(found.bias.detach(), best[-1], rtol=0, atol=2e-3)


def test_units_that_are_there_twice_are_not_missed(pixels):
    model = build()
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.mlp.fc1.weight[32:] = block.mlp.fc1.weight[:32]
            block.mlp.fc1.bias[32:] = block.mlp.fc1.bias[:32]
    fitted = fit(model, pixels, ridge=1e-9)
    # L has one of each two: enough to be the full size, if S and M did not pull at it too
    lost = [1 - nearness(each, model, pixels, "L") for each in (model, fitted)]
    assert lost[1] < lost[0] / 3, lost


@pytest.mark.parametrize("init_values", [None, 0.1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_size_and_mix_comes_nearer_to_the_full_one(pixels, init_values, seed):
    model = build(init_values=init_values, seed=seed)
    ordered = reorder(model, pixels)
    fitted = fit(ordered, pixels)
    for spec in ("S", "M", "L", "1xS,1xL", "1xL,1xS"):
        assert nearness(fitted, model, pixels, spec) > nearness(ordered, model, pixels, spec)


def test_images_that_it_has_not_seen_come_nearer_too(pixels):
    model = build(depth=3, seed=4)
    ordered = reorder(model, pixels[:150])
    fitted = fit(ordered, pixels[:150])
    for spec in ("S", "M", "L"):
        before, after = (nearness(each, model, pixels[150:], spec) for each in (ordered, fitted))
        assert after > before


def test_dimensions_that_layer_scale_shuts_stay_as_they_are(pixels):
    model = build(init_values=0.5)
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.ls2.gamma[3] = 0
    fitted = fit(model, pixels)
    for before, after in zip(model.backbone.blocks, fitted.backbone.blocks, strict=True):
        torch.testing.assert_close(
            after.mlp.fc2.weight[3], before.mlp.fc2.weight[3], rtol=0, atol=1e-6
        )
        assert torch.isfinite(after.mlp.fc2.weight).all()


def test_no_images_and_an_anchor_are_refused(pixels):
    model = build()
    with pytest.raises(ValueError, match="got none"):
        fit(model, pixels[:0])
    with pytest.raises(ValueError, match="has an anchor"):
        fit(AnchoredMatViT.join(model, model), pixels)


def test_first_order_is_how_far_the_vector_moves_if_a_unit_is_turned_down(pixels, monkeypatch):
    monkeypatch.setattr(ranking, "_DIRECTIONS", 300)
    model = build().double()
    few = pixels[:4]
    found = first_order(model, few)
    step = 1e-4
    images = torch.from_numpy(few).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (
        model.preprocess.mean, model.preprocess.std))  # fmt: skip
    images = ((images - mean) / std).float().double()
    with torch.no_grad():
        before = model(images)
        for depth, block in enumerate(model.backbone.blocks):
            for unit in (0, 7, 31, 63):
                column = block.mlp.fc2.weight[:, unit].clone()
                block.mlp.fc2.weight[:, unit] *= 1 - step
                moved = (model(images) - before) / step
                block.mlp.fc2.weight[:, unit] = column
                wanted = moved.square().sum(dim=1).mean()
                # 300 random directions of each of 4 images: a deviation of 4 %
                assert float(found[depth][unit]) == pytest.approx(float(wanted), rel=0.3)


def test_first_order_ranks_a_unit_last_that_nobody_behind_listens_to(pixels):
    model = build(depth=1)
    with torch.no_grad():  # a unit that adds the same to all dimensions: the last norm removes it
        model.backbone.blocks[0].mlp.fc2.weight[:, 5] = 50.0
        model.backbone.norm.weight.fill_(1.0)
    assert int(output_energy(model, pixels)[0].argmax()) == 5
    assert int(first_order(model, pixels)[0].argsort(descending=True)[0]) != 5


def test_a_conversion_fits_if_it_is_asked_and_the_full_size_stays_bit_for_bit(pixels, tmp_path):
    model, stages = build(), {}
    data = LabelledPixels(pixels, np.zeros(len(pixels), np.int64), ["all"], 0)
    converted = convert(
        model, data, tmp_path / "out", None, least_squares=True, ranking="first-order",
        watch=lambda stage, encoder: stages.__setitem__(stage, encoder),
    )  # fmt: skip
    assert list(stages) == ["cut", "reordered", FITTED]
    np.testing.assert_array_equal(embed(converted, pixels), embed(model, pixels))
    found = embed(converted, pixels, "S", precision="float32")
    wanted = embed(stages[FITTED], pixels, "S", precision="float32")
    np.testing.assert_array_equal(found, wanted)
    assert MatViT.load(tmp_path / "out").fingerprint == model.fingerprint


def test_gated_networks_are_sorted_and_fitted_too(pixels):
    torch.manual_seed(1)
    config = MatViTConfig(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, act_layer="silu", gated=True
    )
    model = MatViT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    for by in ("energy", "first-order"):
        ordered = reorder(model, pixels, by=by)
        assert nearness(ordered, model, pixels, "XL") == pytest.approx(1, abs=1e-5)
        assert nearness(ordered, model, pixels, "S") > nearness(model, model, pixels, "S")
        fitted = fit(ordered, pixels)
        assert nearness(fitted, model, pixels, "S") > nearness(ordered, model, pixels, "S")
