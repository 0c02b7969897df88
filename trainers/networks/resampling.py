"""Bilinear resampling of maps, as R3GAN (Huang et al. 2024) and StyleGAN 2 do: strided convolutions alias.

It is linear, so a gradient penalty goes through it.

Shape legend: B images, C channels, H height, W width.
"""

from torch import Tensor
from torch.nn import functional

from trainers.networks.blocks import Grid


def resize(x_BCHW: Tensor, grid: Grid) -> Tensor:
    """Maps of another size: the means of 2 x 2 pixels where that halves both sides."""
    return functional.interpolate(x_BCHW, grid, mode="bilinear", align_corners=False)
