"""The generative adversarial network (Goodfellow et al. 2014), conditional where images carry labels.

Two networks and two phases a step: the discriminator, with exact zero-centred gradient penalties on real (R1)
and generated (R2) images, then the generator. `relativistic` is the loss of R3GAN (Huang et al. 2024), whose
habits the networks follow: no normalisation layers, bilinear resampling, Adam with beta1 0. The discriminator
meets the class by projection (Miyato & Koyama 2018), the generator by an embedding beside its latent.

The networks see images in [-1, 1].
Shape legend: B images, C channels, H height, W width, Z latent size, F features.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from trainers.families import Adam, Batch, DataShape, FamilyConfig, Model, Networks, Noise, Phase


@dataclass(frozen=True)
class Preset:
    """Sizes of the networks."""

    widths: tuple[int, ...]  # channels after each halving of the image; the last one repeats
    hidden: int  # features of each dense layer
    smallest: int  # images are halved while they stay at least this large


PRESETS = {"tiny": Preset(widths=(16, 32), hidden=256, smallest=4)}


class Config(FamilyConfig):
    """The GAN's fields of a recipe's model section."""

    preset: Literal["tiny"] = "tiny"
    latent_size: Annotated[int, Field(ge=1, le=4096)] = 64
    loss: Literal["non_saturating", "relativistic"] = "relativistic"
    r1_gamma: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    r2_gamma: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    lr: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-3
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 50
    lr_decay: Literal["none", "cosine"] = "none"  # measured: decay made the samples worse


def discriminator_loss(kind: str, real_B: Tensor, fake_B: Tensor) -> Tensor:
    """The discriminator's adversarial loss of logits on pairs of real and generated images: a scalar.

    `non_saturating`: softplus(-D(x)) + softplus(D(G(z))) (Goodfellow et al. 2014). `relativistic`:
    softplus(-(D(x) - D(G(z)))) (Jolicoeur-Martineau 2019, 'RpGAN').
    """
    if kind == "relativistic":
        return functional.softplus(fake_B - real_B).mean()
    return functional.softplus(-real_B).mean() + functional.softplus(fake_B).mean()


def generator_loss(kind: str, real_B: Tensor, fake_B: Tensor) -> Tensor:
    """The generator's loss of the same logits: a scalar. It wants the opposite, by the same softplus."""
    if kind == "relativistic":
        return functional.softplus(real_B - fake_B).mean()
    return functional.softplus(-fake_B).mean()


def accuracies(kind: str, real_B: Tensor, fake_B: Tensor) -> dict[str, Tensor]:
    """Shares of logits on the right side: of 0, or (`relativistic`, where 0 means nothing) of their partner's."""
    if kind == "relativistic":
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


def pyramid(preset: Preset, shape: DataShape) -> tuple[list[int], tuple[int, int]]:
    """Channels before and after each halving of the image, and the (height, width) at the end."""
    widths, height, width = [shape.channels], shape.height, shape.width
    while min(height, width) >= 2 * preset.smallest and not (height % 2 or width % 2):
        height, width = height // 2, width // 2
        widths.append(preset.widths[min(len(widths), len(preset.widths)) - 1])
    return widths, (height, width)


class Generator(nn.Module):
    """Dense layers, then convolutions that each follow a bilinear doubling of the image.

    The tanh at the end departs from R3GAN: strokes on black are mostly extreme pixels, which a linear output meets
    only with noise around them, and the discriminator then lives on that noise.
    """

    def __init__(self, config: Config, shape: DataShape) -> None:
        super().__init__()
        preset = PRESETS[config.preset]
        widths, grid = pyramid(preset, shape)
        self.grid = (widths[-1], *grid)
        self.first = nn.Linear(config.latent_size, preset.hidden)
        self.classes = nn.Embedding(shape.num_classes, preset.hidden) if shape.num_classes else None
        self.dense = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Linear(preset.hidden, preset.hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(preset.hidden, math.prod(self.grid)),
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
        """Images (B, C, H, W) in [-1, 1]."""
        hidden_BF = self.first(z_BZ)
        if self.classes is not None:
            hidden_BF = hidden_BF + self.classes(labels_B)
        images_BCHW: Tensor = self.up(self.dense(hidden_BF).unflatten(1, self.grid))
        return images_BCHW.tanh()


class Discriminator(nn.Module):
    """Strided convolutions, dense layers, and a logit: linear in the features, plus one for the class."""

    def __init__(self, config: Config, shape: DataShape) -> None:
        super().__init__()
        preset = PRESETS[config.preset]
        widths, grid = pyramid(preset, shape)
        self.down = nn.Sequential()
        for before, after in itertools.pairwise(widths):
            self.down.extend([nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)])
        self.dense = nn.Sequential(
            nn.Linear(widths[-1] * math.prod(grid), preset.hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(preset.hidden, preset.hidden),
            nn.LeakyReLU(0.2),
        )
        # The relativistic loss sees differences of logits only: a bias would drift.
        self.logit = nn.Linear(preset.hidden, 1, bias=config.loss != "relativistic")
        self.classes = nn.Linear(preset.hidden, shape.num_classes, bias=False) if shape.num_classes else None

    def forward(self, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Logits (B,): how real each image looks as one of its class."""
        features_BF = self.dense(self.down(images_BCHW).flatten(1))
        logits_B: Tensor = self.logit(features_BF).squeeze(1)
        if self.classes is not None:
            logits_B = logits_B + self.classes(features_BF).gather(1, labels_B[:, None]).squeeze(1)
        return logits_B


class GanModel(Model):
    """Two networks, two phases."""

    def __init__(self, config: Config, shape: DataShape) -> None:
        self.config = config
        self.networks = {"generator": Generator(config, shape), "discriminator": Discriminator(config, shape)}
        adam = Adam(
            lr=config.lr,
            beta1=0.0,
            beta2=config.beta2,
            warmup_steps=config.lr_warmup_steps,
            decay=config.lr_decay,
        )
        self.optimizers = {"generator": adam, "discriminator": adam}
        self.phases = [
            Phase("discriminator", "discriminator", self._discriminator_phase),
            Phase("generator", "generator", self._generator_phase),
        ]
        self.sampler = "generator"
        self.latent_size = config.latent_size

    def _discriminator_phase(
        self, networks: Networks, batch: Batch, noise: Noise, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        discriminator: Callable[[Tensor, Tensor], Tensor] = networks["discriminator"]
        with torch.no_grad():
            fake_BCHW = networks["generator"](noise.normal(self.latent_size), batch.labels_B)
        real_BCHW = 2 * batch.images_BCHW - 1
        penalties = {"r1": self.config.r1_gamma, "r2": self.config.r2_gamma}
        real_BCHW.requires_grad_(self.config.r1_gamma > 0)
        fake_BCHW.requires_grad_(self.config.r2_gamma > 0)
        real_B, fake_B = discriminator(real_BCHW, batch.labels_B), discriminator(fake_BCHW, batch.labels_B)

        loss = discriminator_loss(self.config.loss, real_B, fake_B)
        metrics = {"adversarial": loss.detach(), **accuracies(self.config.loss, real_B, fake_B)}
        for name, logits_B, images_BCHW in (("r1", real_B, real_BCHW), ("r2", fake_B, fake_BCHW)):
            if penalties[name] > 0:
                penalty = gradient_penalty(logits_B, images_BCHW)
                loss = loss + 0.5 * penalties[name] * penalty
                metrics[name] = penalty.detach()
        return loss, metrics

    def _generator_phase(
        self, networks: Networks, batch: Batch, noise: Noise, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        fake_BCHW = networks["generator"](noise.normal(self.latent_size), batch.labels_B)
        fake_B = networks["discriminator"](fake_BCHW, batch.labels_B)
        with torch.no_grad():
            real_B = networks["discriminator"](2 * batch.images_BCHW - 1, batch.labels_B)
        loss = generator_loss(self.config.loss, real_B, fake_B)
        return loss, {"pixel_std": fake_BCHW.detach().std(0).mean()}

    def decode(self, network: nn.Module, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """The generator's images, moved to [0, 1]."""
        images_BCHW: Tensor = network(z_BZ, labels_B)
        return (images_BCHW + 1) / 2


def build(config: Config, shape: DataShape) -> Model:
    """Make the GAN for images of `shape`."""
    return GanModel(config, shape)
