"""Residual convolutional towers for images of any size, and the dense layers at a latent's side.

A tower works on a pyramid of grids: the image's own, then each side halved and rounded up (28, 14, 7, 4), so that odd
sizes need no padding rule; the way up returns to exactly the sizes of the way down. No normalisation: blocks start
near the identity instead, their last convolution scaled by 1 / sqrt(blocks) as in VDVAE (Child 2021, section 4).

Shape legend: B images, C channels, H height, W width, F features.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Grid = tuple[int, int]  # height, width

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "tanh": nn.Tanh, "relu": nn.ReLU}


def pyramid(height: int, width: int, smallest: int) -> list[Grid]:
    """The image's grid and its halvings (rounded up), finest first, while the shorter side stays `smallest` or more."""
    grids = [(height, width)]
    while (min(grids[-1]) + 1) // 2 >= smallest:
        grids.append(((grids[-1][0] + 1) // 2, (grids[-1][1] + 1) // 2))
    return grids


@dataclass(frozen=True)
class TowerSize:
    """How wide and deep a tower is. Widths go by the grid, so one preset fits every resolution."""

    budget: int  # channels times the grid's side, about
    least: int  # channels at fine grids
    most: int  # channels at coarse grids
    blocks: int  # residual blocks at each grid
    hidden: int  # features of the dense layer at the latent's side
    smallest: int = 4  # grids are halved while they stay at least this large

    def channels(self, grid: Grid) -> int:
        """Channels at a grid, by its shorter side rounded up to a power of two."""
        side: int = 2 ** math.ceil(math.log2(min(grid)))
        return min(self.most, max(self.least, self.budget // side))


def conv(before: int, after: int, size: int = 3, scale: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the grid; its initial weights times `scale`, its bias zero."""
    layer = nn.Conv2d(before, after, size, padding=size // 2)
    with torch.no_grad():
        layer.weight.mul_(scale)
        assert layer.bias is not None
        layer.bias.zero_()
    return layer


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, each after its activation (He et al. 2016, 'pre-activation')."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.first = conv(channels, channels)
        self.second = conv(channels, channels, scale=scale)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The same shape."""
        change_BCHW: Tensor = self.second(functional.silu(self.first(functional.silu(x_BCHW))))
        return x_BCHW + change_BCHW


class BottomUp(nn.Module):
    """From an image to features at each grid of its pyramid."""

    def __init__(self, channels: int, grids: Sequence[Grid], size: TowerSize) -> None:
        super().__init__()
        widths = [size.channels(grid) for grid in grids]
        scale = (size.blocks * len(grids)) ** -0.5
        self.stem = conv(channels, widths[0])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width, scale) for _ in range(size.blocks))) for width in widths
        )
        self.halvings = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in itertools.pairwise(widths)
        )

    def pyramid(self, images_BCHW: Tensor) -> list[Tensor]:
        """Features (B, C', H', W') at each grid, finest first."""
        x_BCHW = self.stem(images_BCHW)
        first, *stages = self.stages
        features = [first(x_BCHW)]
        for halve, stage in zip(self.halvings, stages, strict=True):
            features.append(stage(halve(features[-1])))
        return features

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, C', H', W') at the coarsest grid."""
        return self.pyramid(images_BCHW)[-1]


class Enlarge(nn.Module):
    """To a finer grid and its channels: a 1x1 convolution where it is cheap, then the nearest neighbour."""

    def __init__(self, before: int, after: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.channels = conv(before, after, size=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C', *grid)."""
        return functional.interpolate(self.channels(x_BCHW), size=self.grid, mode="nearest-exact")


class TopDown(nn.Module):
    """From features at the coarsest grid to a value or more a pixel."""

    def __init__(self, outputs: int, grids: Sequence[Grid], size: TowerSize) -> None:
        super().__init__()
        scale = (size.blocks * len(grids)) ** -0.5
        layers: list[nn.Module] = []
        width = size.channels(grids[-1])
        for grid in reversed(grids):
            if layers:
                layers.append(Enlarge(width, size.channels(grid), grid))
            width = size.channels(grid)
            layers.extend(ResidualBlock(width, scale) for _ in range(size.blocks))
        self.layers = nn.Sequential(*layers, nn.SiLU(), conv(width, outputs))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """(B, outputs, H, W) at the finest grid."""
        outputs_BPHW: Tensor = self.layers(features_BCHW)
        return outputs_BPHW


class ConditionalMlp(nn.Module):
    """Dense layers; the class enters the first as an embedding that weighs as much as all other inputs.

    (A one-hot vector beside the inputs was drowned by them: the class then went through z, and half of the
    conditional samples were of another class.) Without hidden layers it is one linear map.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], outputs: int, num_classes: int, activation: str = "silu"
    ) -> None:
        super().__init__()
        widths = [*hidden, outputs]
        self.first = nn.Linear(inputs, widths[0])
        self.classes = nn.Embedding(num_classes, widths[0]) if num_classes else None
        self.rest = nn.Sequential()
        for before, after in itertools.pairwise(widths):
            self.rest.extend([ACTIVATIONS[activation](), nn.Linear(before, after)])

    def forward(self, x_BF: Tensor, labels_B: Tensor) -> Tensor:
        """Outputs (B, F')."""
        hidden_BF = self.first(x_BF)
        if self.classes is not None:
            hidden_BF = hidden_BF + self.classes(labels_B)
        outputs_BF: Tensor = self.rest(hidden_BF)
        return outputs_BF
