"""The nested feed-forward network against a masked one.

Mutants these tests must catch: a detached bias, a mask instead of a slice, the last units instead
of the first, a width that is clipped in silence, the output bias left out.
"""

from __future__ import annotations

import pytest
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block

from matvit.model import NestedBlock, NestedMlp

DIM, HIDDEN = 6, 16
WIDTHS = [1, 2, 4, 8, 15, 16]


@pytest.fixture
def ffn() -> NestedMlp:
    torch.manual_seed(0)
    return NestedMlp(DIM, HIDDEN).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 5, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("width", WIDTHS)
def test_sliced_ffn_equals_masked_ffn(ffn, x, width):
    mask = (torch.arange(HIDDEN) < width).double()
    masked = (torch.nn.functional.gelu(x @ ffn.fc1.weight.T + ffn.fc1.bias) * mask) @ (
        ffn.fc2.weight.T
    ) + ffn.fc2.bias
    torch.testing.assert_close(ffn(x, width), masked, rtol=0, atol=1e-14)


def test_full_width_equals_timms_mlp(ffn, x):
    plain = Mlp(DIM, HIDDEN).double()
    plain.load_state_dict(ffn.state_dict())
    assert torch.equal(ffn(x, HIDDEN), plain(x))
    assert torch.equal(ffn(x), plain(x))


@pytest.mark.parametrize("width", WIDTHS)
def test_training_a_width_reaches_its_parameters_and_no_others(ffn, x, width):
    ffn(x, width).square().sum().backward()
    kept = torch.arange(HIDDEN) < width
    for gradient in (ffn.fc1.weight.grad, ffn.fc1.bias.grad, ffn.fc2.weight.grad.T):
        assert (gradient.reshape(HIDDEN, -1) != 0).any(dim=1).equal(kept)
    assert (ffn.fc2.bias.grad != 0).all()


@pytest.mark.parametrize("width", [0, -1, HIDDEN + 1])
def test_widths_out_of_range_are_errors(ffn, x, width):
    with pytest.raises(ValueError, match=rf"width must be within 1\.\.16, got {width}"):
        ffn(x, width)


def test_an_ffn_without_bias_works(x):
    ffn = NestedMlp(DIM, HIDDEN, bias=False).double()
    assert ffn(x, 4).shape == x.shape


def test_a_blocks_two_halves_equal_timms_block(x):
    torch.manual_seed(0)
    nested = NestedBlock(DIM, 2, init_values=0.5, mlp_layer=NestedMlp).double().eval()
    plain = Block(DIM, 2, init_values=0.5).double().eval()
    plain.load_state_dict(nested.state_dict())
    assert torch.equal(nested.feed_forward(nested.attend(x)), plain(x))
