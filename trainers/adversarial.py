"""The games that a generator and a discriminator play: losses of logits, gradient penalties, and what to log of them.

Pure functions. `gan` and `vaegan` put them together into phases.

The four losses, with D a logit and F = G(z), are written as what each player minimises:

    non_saturating   D: softplus(-D(x)) + softplus(D(F))      G: softplus(-D(F))          (Goodfellow et al. 2014)
    relativistic     D: softplus(-(D(x) - D(F)))              G: softplus(D(x) - D(F))    (Jolicoeur-Martineau 2019)
    wgan             D: D(F) - D(x)                           G: -D(F)                    (Arjovsky et al. 2017)
    hinge            D: relu(1 - D(x)) + relu(1 + D(F))       G: -D(F)                    (Lim & Ye 2017)

`relativistic` on pairs is the loss of R3GAN (Huang et al. 2024). `wgan` bounds nothing by itself: it needs penalties.

Shape legend: B images, C channels, H height, W width.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trainers.precision import full

LossName = Literal["non_saturating", "relativistic", "wgan", "hinge"]
ONLY_DIFFERENCES: tuple[LossName, ...] = ("relativistic", "wgan")  # adding a constant to all logits changes nothing


def discriminator_loss(kind: LossName, real_B: Tensor, fake_B: Tensor) -> Tensor:
    """The discriminator's loss of its logits on real and generated images, paired by row: a scalar."""
    if kind == "relativistic":
        return functional.softplus(fake_B - real_B).mean()
    if kind == "wgan":
        return (fake_B - real_B).mean()
    if kind == "hinge":
        return (1 - real_B).relu().mean() + (1 + fake_B).relu().mean()
    return functional.softplus(-real_B).mean() + functional.softplus(fake_B).mean()


def generator_loss(kind: LossName, real_B: Tensor, fake_B: Tensor) -> Tensor:
    """The generator's loss of the same logits: a scalar. Only `relativistic` looks at the real ones."""
    if kind == "relativistic":
        return functional.softplus(real_B - fake_B).mean()
    if kind in ("wgan", "hinge"):
        return -fake_B.mean()
    return functional.softplus(-fake_B).mean()


def accuracies(kind: LossName, real_B: Tensor, fake_B: Tensor) -> dict[str, Tensor]:
    """Shares of logits on the right side: of 0, or (losses for which 0 means nothing) of their partner's."""
    if kind in ONLY_DIFFERENCES:
        return {"pair_accuracy": (real_B > fake_B).float().mean()}
    return {
        "real_accuracy": (real_B > 0).float().mean(),
        "fake_accuracy": (fake_B < 0).float().mean(),
    }


def gradient_penalty(logits_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """Mean over images of ||d logit / d image||^2, differentiable (R1 of Mescheder et al. 2018): a scalar.

    Each logit depends on its own image only, so the gradient of the sum holds the gradient of each.
    """
    (gradient_BCHW,) = torch.autograd.grad(logits_B.sum(), images_BCHW, create_graph=True)
    return gradient_BCHW.square().flatten(1).sum(1).mean()


def perturbed_penalty(
    critic: Callable[[Tensor], Tensor], logits_B: Tensor, images_BCHW: Tensor, direction_BCHW: Tensor, sigma: float
) -> Tensor:
    """Mean over images of (D(x + sigma u) - D(x))^2 / sigma^2 with u ~ N(0, 1) given: a scalar, no double backward.

    The approximated R1 of Lin et al. 2025 ('APT', where the 1 / sigma^2 is part of the weight). The logit moves by
    sigma u . grad D + O(sigma^2), and E[(u . g)^2] = ||g||^2 for standard normal u: so its expectation is the exact
    penalty plus O(sigma^2). `logits_B` are critic(images_BCHW). In fp32 the difference of two logits near 10 is
    exact to 1e-6, so sigma 0.01 loses 1e-4 of it; in bf16 it would lose everything, so where the critic runs in
    that, both logits are computed anew in fp32.
    """
    device = images_BCHW.device
    reduced = torch.is_autocast_enabled(device.type)
    with full(device):
        if reduced:
            logits_B = critic(images_BCHW)
        moved_B = critic(images_BCHW + sigma * direction_BCHW)
    return ((moved_B - logits_B) / sigma).square().mean()
