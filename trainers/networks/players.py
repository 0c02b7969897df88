"""The networks of the adversarial families, chosen by a few fields of a recipe's model section.

Shape legend: B images, P packs of M images, C channels, H height, W width, Z latent size, F features.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainers.families import DataShape, FamilyConfig
from trainers.networks.mlp import MlpGenerator, MlpTrunk
from trainers.networks.residual import BASE, LARGE, ResidualGenerator, ResidualTrunk
from trainers.networks.strided import TINY, StridedGenerator, StridedTrunk
from trainers.networks.trunk import Trunk
from trainers.precision import single

Width = Annotated[int, Field(ge=1, le=65536)]
Hidden = Annotated[tuple[Width, ...], Field(min_length=2, max_length=16)]

RESIDUAL = {"base": BASE, "large": LARGE}


class PlayersConfig(FamilyConfig):
    """The fields that choose the networks."""

    preset: Literal["tiny", "base", "large"] = "tiny"  # of the convolutional networks
    network: Literal["conv", "mlp"] = "conv"
    hidden: Hidden = (128, 128, 128)  # layers of `mlp`
    discriminator_hidden: Hidden | None = None  # of its discriminator; none: the same
    latent_size: Annotated[int, Field(ge=1, le=4096)] = 64
    # tanh departs from R3GAN: strokes on black are mostly extreme pixels, which a linear output meets only with noise
    # around them, and the discriminator then lives on that noise.
    output: Literal["tanh", "linear"] = "tanh"

    @model_validator(mode="after")
    def _network_has_its_fields(self) -> Self:
        """A field that would be ignored is refused, with the setting that it belongs to."""
        for field, network in (("preset", "conv"), ("hidden", "mlp"), ("discriminator_hidden", "mlp")):
            if field in self.model_fields_set and self.network != network:
                raise ValueError(f"{field} is used with network: {network} only")
        return self


def bounded(images_BCHW: Tensor, config: PlayersConfig) -> Tensor:
    """A generator's output as images: in [-1, 1] with tanh, around it without."""
    images_BCHW = single(images_BCHW)
    return images_BCHW.tanh() if config.output == "tanh" else images_BCHW


def to_unit(images_BCHW: Tensor) -> Tensor:
    """Images of [-1, 1] in [0, 1], for those who look at them."""
    return ((images_BCHW + 1) / 2).clamp(0, 1)


def make_generator(config: PlayersConfig, shape: DataShape) -> nn.Module:
    """(latents (B, Z), classes (B,)) -> what `bounded` makes images (B, C, H, W) of."""
    if config.network == "mlp":
        return MlpGenerator(config.latent_size, config.hidden, shape)
    if config.preset == "tiny":
        return StridedGenerator(TINY, config.latent_size, shape)
    return ResidualGenerator(RESIDUAL[config.preset], config.latent_size, shape)


def make_trunk(config: PlayersConfig, shape: DataShape, pack: int = 1, hidden: Hidden | None = None) -> Trunk:
    """Images (B, pack * C, H, W) in [-1, 1] -> features; `hidden` layers of `mlp` instead of the config's."""
    size = (shape.channels * pack, shape.height, shape.width)
    if config.network == "mlp":
        return MlpTrunk(hidden or config.hidden, *size)
    if config.preset == "tiny":
        return StridedTrunk(TINY, *size)
    return ResidualTrunk(RESIDUAL[config.preset], *size)


class Discriminator(nn.Module):
    """A logit: linear in the trunk's features, plus their product with the class (Miyato & Koyama 2018).

    It may judge packs of images instead of single ones (Lin et al. 2018, 'PacGAN'): their channels are stacked, and the
    product is with the sum of their classes. `chance` is that of adaptive augmentation (`trainers.adaptive`): a
    buffer, so that it is part of a checkpoint.
    """

    chance: Tensor

    def __init__(self, trunk: Trunk, num_classes: int, bias: bool, adaptive: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.logit = nn.Linear(trunk.num_features, 1, bias=bias)
        self.classes = nn.Linear(trunk.num_features, num_classes, bias=False) if num_classes else None
        if adaptive:
            self.register_buffer("chance", torch.zeros(1))

    def logits(self, maps: Tensor, labels_PM: Tensor) -> Tensor:
        """Logits (P,) of the trunk's maps."""
        features_PF = self.trunk.vector(maps)
        logits_P: Tensor = self.logit(features_PF).squeeze(1)
        if self.classes is not None:
            logits_P = logits_P + self.classes(features_PF).gather(1, labels_PM).sum(1)
        return single(logits_P)

    def forward(self, images_PCHW: Tensor, labels_PM: Tensor) -> Tensor:
        """Logits (P,): how real each pack (P, M * C, H, W) looks as images of these classes (P, M)."""
        return self.logits(self.trunk.maps(images_PCHW), labels_PM)


def packed(x_B: Tensor, pack: int) -> Tensor:
    """Rows that follow each other as packs: (B, C, H, W) as (B / pack, pack * C, H, W), (B,) as (B / pack, pack).

    Raises ValueError where B is no multiple of `pack`.
    """
    if len(x_B) % pack:
        raise ValueError(
            f"pack: expected a divisor of the worker's part of the batch, {len(x_B)} images, got {pack}; choose "
            "another batch_size, best a multiple of 48 * pack: packs are then the same for any number of workers"
        )
    return x_B.reshape(len(x_B) // pack, -1, *x_B.shape[2:])


@torch.no_grad()
def spread(images_BCHW: Tensor) -> Tensor:
    """Mean over pixels of the standard deviation over the batch: near 0 where a generator makes one image only."""
    return images_BCHW.std(0).mean()
