"""Adaptive augmentation for a discriminator with few images (Karras et al. 2020, 'ADA').

A discriminator that has learned its training images by heart gives them large logits, and no longer tells the
generator anything. So it only sees augmented images, real and generated ones alike, each operation with the same
chance; the chance follows a sign of overfitting, the mean of sign(D(x)), towards a target. While the chance stays
below 0.8, the generator does not learn to make augmented images (section 2.2 there). Every operation is
differentiable twice: gradients go through it to the generator.

Shape legend: B images, C channels, H height, W width.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.families import Noise

MAX_CHANCE = 0.8
MOVE = 0.125  # images are moved by up to this share of their sides
BRIGHTNESS = 0.2  # standard deviation of what is added, for images in [-1, 1]
CONTRAST = 0.5  # standard deviation of the binary logarithm of the factor
CUT = 0.5  # sides of the rectangle, as a share of the image's


def augmented(images_BCHW: Tensor, chance: Tensor, noise: Noise) -> Tensor:
    """Images in [-1, 1], each flipped, moved, recoloured and cut with `chance` (1,), one independently of the other."""
    draws_BD = noise.uniform(10)
    happens_BD = draws_BD[:, :4] < chance
    flip_B = happens_BD[:, 0] & (draws_BD[:, 4] < 0.5)
    images_BCHW = moved(images_BCHW, flip_B, (2 * draws_BD[:, 5:7] - 1) * MOVE * happens_BD[:, 1:2])
    brightness_B, contrast_B = (noise.normal(2) * happens_BD[:, 2:3]).unbind(1)
    images_BCHW = recoloured(images_BCHW, BRIGHTNESS * brightness_B, CONTRAST * contrast_B)
    return cut(images_BCHW, happens_BD[:, 3], draws_BD[:, 7:9])


def moved(images_BCHW: Tensor, flip_B: Tensor, by_B2: Tensor) -> Tensor:
    """Images mirrored left to right where `flip`, then moved by shares of height and width; the edge goes on."""
    height, width = images_BCHW.shape[2:]
    at_H = torch.arange(height, device=images_BCHW.device)
    at_W = torch.arange(width, device=images_BCHW.device)
    rows_BH = (at_H + (by_B2[:, :1] * height).round().long()).clamp(0, height - 1)
    columns_BW = (at_W + (by_B2[:, 1:] * width).round().long()).clamp(0, width - 1)
    columns_BW = torch.where(flip_B[:, None], width - 1 - columns_BW, columns_BW)
    images_BCHW = images_BCHW.gather(2, rows_BH[:, None, :, None].expand(images_BCHW.shape))
    return images_BCHW.gather(3, columns_BW[:, None, None, :].expand(images_BCHW.shape))


def recoloured(images_BCHW: Tensor, brightness_B: Tensor, log2_contrast_B: Tensor) -> Tensor:
    """All values times 2^log2_contrast, plus brightness."""
    return images_BCHW * log2_contrast_B.exp2()[:, None, None, None] + brightness_B[:, None, None, None]


def cut(images_BCHW: Tensor, happens_B: Tensor, middle_B2: Tensor) -> Tensor:
    """Images, where it happens with a grey (0) rectangle around a middle given in shares of height and width."""
    inside = []
    for axis, size in enumerate(images_BCHW.shape[2:]):
        at = (torch.arange(size, device=images_BCHW.device) + 0.5) / size
        inside.append((at - middle_B2[:, axis : axis + 1]).abs() < CUT / 2)
    hole_BHW = inside[0][:, :, None] & inside[1][:, None, :] & happens_B[:, None, None]
    return images_BCHW * ~hole_BHW[:, None]


@torch.no_grad()
def overfitting(logits_B: Tensor, reference_B: Tensor, global_count: int) -> Tensor:
    """Mean of sign(logits - reference) over all workers' logits, (1,). Collective where there are several workers.

    The signs' sum is a whole number, so it is the same bit for bit however the batch is spread over workers.
    """
    total = (logits_B - reference_B).sign().sum().reshape(1)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total / global_count


@torch.no_grad()
def adapt(chance: Tensor, sign: Tensor, target: float, step: float) -> None:
    """Move the chance (1,), in place, by `step` up where the sign of overfitting is above its target, else down."""
    chance.add_(step * (sign - target).sign()).clamp_(0, MAX_CHANCE)
