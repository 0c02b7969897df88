"""Dense networks for a GAN: for points, which are images of 1 x 1 pixel, and for the papers' tables.

No normalisation; LeakyReLU; weights by He et al. 2015, so that signals keep their size at any width.

Shape legend: B images, C channels, H height, W width, Z latent size, F features.
"""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from trainers.families import DataShape
from trainers.networks.trunk import Trunk

SLOPE = 0.2
GAIN = math.sqrt(2 / (1 + SLOPE**2))  # keeps the variance through a LeakyReLU (He et al. 2015, eq. 15)


def dense(inputs: int, outputs: int, gain: float = GAIN) -> nn.Linear:
    """A dense layer with normal weights of variance gain^2 / inputs and no bias at first."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs))
    nn.init.zeros_(layer.bias)
    return layer


def first_layer(inputs: int, outputs: int) -> nn.Linear:
    """A dense layer on numbers of about unit size. Its biases spread the kinks, which would all meet in 0."""
    layer = dense(inputs, outputs, gain=1.0)
    nn.init.normal_(layer.bias)
    return layer


def hidden_layers(sizes: Sequence[int]) -> nn.Sequential:
    """LeakyReLU and dense layer in turn, from the first size to the last, and a LeakyReLU at the end."""
    layers = nn.Sequential(nn.LeakyReLU(SLOPE))
    for before, after in itertools.pairwise(sizes):
        layers.extend([dense(before, after), nn.LeakyReLU(SLOPE)])
    return layers


class MlpGenerator(nn.Module):
    """Latent to image; the class enters the first layer as an embedding beside the latent."""

    def __init__(self, latent_size: int, sizes: Sequence[int], shape: DataShape) -> None:
        super().__init__()
        self.image = (shape.channels, shape.height, shape.width)
        self.first = first_layer(latent_size, sizes[0])
        self.classes = nn.Embedding(shape.num_classes, sizes[0]) if shape.num_classes else None
        self.hidden = hidden_layers(sizes)
        self.last = dense(sizes[-1], shape.pixels, gain=1.0)

    def forward(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """Images (B, C, H, W), not bounded."""
        hidden_BF = self.first(z_BZ)
        if self.classes is not None:
            hidden_BF = hidden_BF + self.classes(labels_B)
        images_BF: Tensor = self.last(self.hidden(hidden_BF))
        return images_BF.view(-1, *self.image)


class MlpTrunk(Trunk):
    """Image to features: all layers but the last make the maps."""

    def __init__(self, sizes: Sequence[int], channels: int, height: int, width: int) -> None:
        super().__init__()
        self.num_features = sizes[-1]
        self.first = first_layer(channels * height * width, sizes[0])
        self.hidden = hidden_layers(sizes[:-1])
        self.last = nn.Sequential(dense(sizes[-2], sizes[-1]), nn.LeakyReLU(SLOPE))

    def maps(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, F') of the last layer but one."""
        maps_BF: Tensor = self.hidden(self.first(images_BCHW.flatten(1)))
        return maps_BF

    def vector(self, maps: Tensor) -> Tensor:
        """Features (B, F)."""
        features_BF: Tensor = self.last(maps)
        return features_BF
