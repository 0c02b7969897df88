"""What a discriminator and an encoder have in common: image to feature maps, and on to a vector of features.

Shape legend: B images, C channels, H height, W width, F features.
"""

from abc import abstractmethod

from torch import Tensor, nn


class Trunk(nn.Module):
    """Two parts, because a feature-matching loss compares images by the maps in the middle."""

    num_features: int

    @abstractmethod
    def maps(self, images_BCHW: Tensor) -> Tensor:
        """Feature maps (B, ...) of images in [-1, 1]."""

    @abstractmethod
    def vector(self, maps: Tensor) -> Tensor:
        """Features (B, F) of those maps."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, F) of images in [-1, 1]."""
        return self.vector(self.maps(images_BCHW))
