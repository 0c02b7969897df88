"""Residual networks for images of 8 to 256 pixels in the manner of R3GAN (Huang et al. 2024, section 4).

No normalisation. A block is 1x1 expansion, grouped 3x3, 1x1 contraction with a LeakyReLU before the second and the
third (an inverted bottleneck); its last convolution starts at zero and the others are scaled by L^(-1/4) for L blocks
('fix-up', Zhang et al. 2019: L^(-1 / (2m - 2)) for m = 3 layers a block), so that the signal's variance does not grow
with depth. Between the sizes: bilinear resampling and a 1x1 convolution where the width changes. The smallest maps
meet the latent by a learned basis that it scales, and leave for a vector by one depthwise convolution as large as
they are.

Shape legend: B images, C channels, H height, W width, Z latent size, F features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.families import DataShape
from trainers.networks.blocks import Grid, pyramid
from trainers.networks.mlp import GAIN, SLOPE
from trainers.networks.resampling import resize
from trainers.networks.trunk import Trunk

SMALLEST = 4  # images are halved while their shorter side stays at least this large
EXPANSION = 2
GROUP_CHANNELS = 16


@dataclass(frozen=True)
class ResidualSizes:
    """Sizes of the networks: `budget // side` channels at a side, within the bounds."""

    budget: int
    narrowest: int
    widest: int
    blocks: int  # at each size of the image

    def width(self, grid: Grid) -> int:
        """Channels of maps of this size, a multiple of the group."""
        wanted = min(max(self.budget // max(grid), self.narrowest), self.widest)
        return max(1, wanted // GROUP_CHANNELS) * GROUP_CHANNELS


BASE = ResidualSizes(budget=4096, narrowest=32, widest=256, blocks=2)
LARGE = ResidualSizes(budget=16384, narrowest=64, widest=512, blocks=3)


def convolution(inputs: int, outputs: int, kernel: int, gain: float, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps the size, with normal weights of variance gain^2 / fan-in."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs // groups * kernel**2))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """x + contraction(grouped(expansion(x))), which is x at first."""

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__()
        inside, gain = EXPANSION * width, GAIN * num_blocks**-0.25
        self.expand = convolution(width, inside, 1, gain)
        self.grouped = convolution(inside, inside, 3, gain, groups=inside // GROUP_CHANNELS)
        self.contract = convolution(inside, width, 1, gain=0.0, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = functional.leaky_relu(self.expand(x_BCHW), SLOPE)
        y_BCHW = functional.leaky_relu(self.grouped(y_BCHW), SLOPE)
        x_BCHW = x_BCHW + self.contract(y_BCHW)
        return x_BCHW


class Stage(nn.Module):
    """Blocks at one size of the image, after the change from the size and width before."""

    def __init__(self, before: int, width: int, grid: Grid, blocks: int, num_blocks: int) -> None:
        super().__init__()
        self.grid = grid
        self.change = convolution(before, width, 1, gain=1.0, bias=False) if before != width else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, num_blocks) for _ in range(blocks)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # The 1x1 convolution and the resampling commute: do first what leaves the smaller maps.
        if self.grid[0] < x_BCHW.shape[2]:
            x_BCHW = self.change(resize(x_BCHW, self.grid))
        elif self.grid[0] > x_BCHW.shape[2]:
            x_BCHW = resize(self.change(x_BCHW), self.grid)
        else:
            x_BCHW = self.change(x_BCHW)
        maps_BCHW: Tensor = self.blocks(x_BCHW)
        return maps_BCHW


def stages(sizes: ResidualSizes, grids: list[Grid]) -> nn.Sequential:
    """The stages from the first size to the last."""
    widths = [sizes.width(grid) for grid in grids]
    num_blocks = sizes.blocks * len(grids)
    befores = [widths[0], *widths[:-1]]
    return nn.Sequential(
        *(
            Stage(before, width, grid, sizes.blocks, num_blocks)
            for before, width, grid in zip(befores, widths, grids, strict=True)
        )
    )


class ResidualGenerator(nn.Module):
    """A learned basis of the smallest maps, scaled by the latent and the class; stages; a 1x1 convolution to pixels."""

    def __init__(self, sizes: ResidualSizes, latent_size: int, shape: DataShape) -> None:
        super().__init__()
        grids = pyramid(shape.height, shape.width, SMALLEST)[::-1]
        first = sizes.width(grids[0])
        self.basis = nn.Parameter(torch.randn(first, *grids[0]))
        # As R3GAN: the embedding joins the latent, and one linear layer without bias scales the basis.
        self.classes = nn.Embedding(shape.num_classes, latent_size) if shape.num_classes else None
        inputs = latent_size * (2 if shape.num_classes else 1)
        self.scales = nn.Linear(inputs, first, bias=False)
        nn.init.normal_(self.scales.weight, std=1 / math.sqrt(inputs))
        self.stages = stages(sizes, grids)
        self.pixels = convolution(sizes.width(grids[-1]), shape.channels, 1, gain=1.0)

    def forward(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """Images (B, C, H, W), not bounded."""
        if self.classes is not None:
            z_BZ = torch.cat([z_BZ, self.classes(labels_B)], 1)
        images_BCHW: Tensor = self.pixels(self.stages(self.basis * self.scales(z_BZ)[:, :, None, None]))
        return images_BCHW


class ResidualTrunk(Trunk):
    """A 1x1 convolution from pixels; stages; one depthwise convolution over the whole smallest maps, a dense layer."""

    def __init__(self, sizes: ResidualSizes, channels: int, height: int, width: int) -> None:
        super().__init__()
        grids = pyramid(height, width, SMALLEST)
        last, area = sizes.width(grids[-1]), math.prod(grids[-1])
        self.num_features = last
        self.pixels = convolution(channels, sizes.width(grids[0]), 1, gain=1.0)
        self.stages = stages(sizes, grids)
        # (C, H, W) weights: what a depthwise convolution of that size computes, as one product.
        self.basis = nn.Parameter(torch.randn(last, *grids[-1]) / math.sqrt(area))
        # No bias: all that follows is linear, so it would only add a constant to logits, which may drift.
        self.dense = nn.Linear(last, last, bias=False)
        nn.init.normal_(self.dense.weight, std=1 / math.sqrt(last))

    def maps(self, images_BCHW: Tensor) -> Tensor:
        """Feature maps (B, C', H', W') of the smallest size."""
        maps_BCHW: Tensor = self.stages(self.pixels(images_BCHW))
        return maps_BCHW

    def vector(self, maps: Tensor) -> Tensor:
        """Features (B, F)."""
        features_BF: Tensor = self.dense((maps * self.basis).sum((2, 3)))
        return features_BF
