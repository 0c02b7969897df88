"""Residual networks of the GAN: the start that keeps signals their size, and resampling."""

import math

import pytest
import torch
from torch import Tensor

from trainers.networks.resampling import resize
from trainers.networks.residual import BASE, EXPANSION, GROUP_CHANNELS, LARGE, Block, ResidualSizes, Stage

GAIN = math.sqrt(2 / 1.04)  # of LeakyReLU with slope 0.2


def std(weight: Tensor) -> float:
    return weight.std().item()


@pytest.mark.parametrize("num_blocks", [1, 16])
def test_a_block_is_the_identity_at_first_and_scaled_by_depth(num_blocks: int) -> None:
    torch.manual_seed(0)
    block, x_BCHW = Block(64, num_blocks), torch.randn(2, 64, 5, 7)
    assert torch.equal(block(x_BCHW), x_BCHW)
    scale = GAIN * num_blocks**-0.25
    assert std(block.expand.weight) == pytest.approx(scale / math.sqrt(64), rel=0.05)
    assert std(block.grouped.weight) == pytest.approx(scale / math.sqrt(9 * GROUP_CHANNELS), rel=0.05)
    assert block.grouped.groups == EXPANSION * 64 // GROUP_CHANNELS
    torch.nn.init.normal_(block.contract.weight)
    assert not torch.equal(block(x_BCHW), x_BCHW)


def test_halving_takes_means_of_two_by_two_and_doubling_repeats_the_edge() -> None:
    x_BCHW = torch.randn(2, 3, 6, 4)
    torch.testing.assert_close(resize(x_BCHW, (3, 2)), x_BCHW.unflatten(2, (3, 2)).unflatten(4, (2, 2)).mean((3, 5)))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    doubled = resize(x_BCHW, (12, 8))
    torch.testing.assert_close(doubled[:, :, 0, 0], x_BCHW[:, :, 0, 0])
    expected = 0.75 * x_BCHW[:, :, 0, 0] + 0.25 * x_BCHW[:, :, 0, 1]
    torch.testing.assert_close(doubled[:, :, 0, 1], expected)


@pytest.mark.parametrize(("before", "after"), [((8, 6), (4, 3)), ((4, 3), (8, 6)), ((7, 5), (4, 3)), ((4, 3), (4, 3))])
def test_a_stage_changes_width_and_size_in_either_order(before: tuple[int, int], after: tuple[int, int]) -> None:
    """A 1x1 convolution and bilinear resampling commute, so what is cheaper comes first."""
    stage, x_BCHW = Stage(16, 32, after, blocks=1, num_blocks=1), torch.randn(2, 16, *before)
    torch.testing.assert_close(stage(x_BCHW), resize(stage.change(x_BCHW), after), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [BASE, LARGE], ids=["base", "large"])
def test_widths_are_whole_groups_between_their_bounds(sizes: ResidualSizes) -> None:
    for side in (4, 7, 8, 14, 28, 64, 256):
        width = sizes.width((side, side))
        assert width % GROUP_CHANNELS == 0
        assert sizes.narrowest <= width <= sizes.widest
        assert width >= sizes.width((2 * side, side))
