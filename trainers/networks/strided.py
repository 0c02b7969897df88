"""Small convolutional networks for small images: the preset `tiny` of the adversarial families.

Shape legend: B images, C channels, H height, W width, Z latent size, F features.
"""

import itertools
import math
from dataclasses import dataclass

from torch import Tensor, nn

from trainers.families import DataShape
from trainers.networks.trunk import Trunk


@dataclass(frozen=True)
class StridedSizes:
    """Sizes of the networks."""

    widths: tuple[int, ...]  # channels after each halving of the image; the last one repeats
    hidden: int  # features of each dense layer
    smallest: int  # images are halved while they stay at least this large


TINY = StridedSizes(widths=(16, 32), hidden=256, smallest=4)


def pyramid(sizes: StridedSizes, channels: int, height: int, width: int) -> tuple[list[int], tuple[int, int]]:
    """Channels before and after each halving of the image, and the (height, width) at the end.

    Only even sides are halved: these networks have no resampling that could round.
    """
    widths = [channels]
    while min(height, width) >= 2 * sizes.smallest and not (height % 2 or width % 2):
        height, width = height // 2, width // 2
        widths.append(sizes.widths[min(len(widths), len(sizes.widths)) - 1])
    return widths, (height, width)


class StridedGenerator(nn.Module):
    """Dense layers, then convolutions that each follow a bilinear doubling of the image."""

    def __init__(self, sizes: StridedSizes, latent_size: int, shape: DataShape) -> None:
        super().__init__()
        widths, grid = pyramid(sizes, shape.channels, shape.height, shape.width)
        self.grid = (widths[-1], *grid)
        self.first = nn.Linear(latent_size, sizes.hidden)
        self.classes = nn.Embedding(shape.num_classes, sizes.hidden) if shape.num_classes else None
        self.dense = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Linear(sizes.hidden, sizes.hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(sizes.hidden, math.prod(self.grid)),
        )
        self.up = nn.Sequential()
        for before, after in itertools.pairwise(reversed(widths)):
            self.up.extend(
                [
                    nn.LeakyReLU(0.2),
                    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                    nn.Conv2d(before, after, 3, padding=1),
                ]
            )

    def forward(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """Images (B, C, H, W), not bounded."""
        hidden_BF = self.first(z_BZ)
        if self.classes is not None:
            hidden_BF = hidden_BF + self.classes(labels_B)
        images_BCHW: Tensor = self.up(self.dense(hidden_BF).unflatten(1, self.grid))
        return images_BCHW


class StridedTrunk(Trunk):
    """Strided convolutions, then dense layers."""

    def __init__(self, sizes: StridedSizes, channels: int, height: int, width: int) -> None:
        super().__init__()
        widths, grid = pyramid(sizes, channels, height, width)
        self.num_features = sizes.hidden
        self.down = nn.Sequential()
        for before, after in itertools.pairwise(widths):
            self.down.extend([nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)])
        self.dense = nn.Sequential(
            nn.Linear(widths[-1] * math.prod(grid), sizes.hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(sizes.hidden, sizes.hidden),
            nn.LeakyReLU(0.2),
        )

    def maps(self, images_BCHW: Tensor) -> Tensor:
        """Feature maps (B, C', H', W')."""
        maps_BCHW: Tensor = self.down(images_BCHW)
        return maps_BCHW

    def vector(self, maps: Tensor) -> Tensor:
        """Features (B, F)."""
        features_BF: Tensor = self.dense(maps.flatten(1))
        return features_BF
