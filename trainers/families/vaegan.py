"""A VAE whose images are compared by a discriminator's features (Larsen et al. 2016, 'VAE/GAN').

A pixel likelihood is content with blur. Here the distance between an image and its reconstruction is taken between
maps in the middle of a discriminator (a Gaussian likelihood of unit variance, eq. 7 and 8 there), and the decoder
also has to convince that discriminator, with reconstructions and with images of the prior. Two networks, two phases:
the discriminator, then the autoencoder. As in the paper, the encoder hears of features and prior only:
reconstructions reach the adversarial loss by latents that are cut off from it.

The networks see images in [-1, 1]. Shape legend: B images, C channels, H height, W width, Z latent size, F features.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from trainers import adversarial
from trainers.adversarial import LossName
from trainers.alarms import Alarm, posterior_collapsed
from trainers.families import Adam, Batch, DataShape, Model, Networks, Noise, Phase
from trainers.networks import players
from trainers.networks.latent import kl_to_standard_normal
from trainers.networks.players import Discriminator, PlayersConfig
from trainers.precision import single


class Config(PlayersConfig):
    """The VAE/GAN's fields of a recipe's model section."""

    loss: LossName = "relativistic"
    beta: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0  # weight of the rate
    kl_warmup_steps: Annotated[int, Field(ge=0)] = 200
    feature_weight: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0  # of the distance between features
    pixel_weight: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0  # of that between pixels; none in the paper
    # 1 / gamma of the paper. Measured on 8x8 digits, Frechet distance: 1 gives 6.4, 10 3.4, 100 1.3; a VAE 5.0.
    adversarial_weight: Annotated[float, Field(ge=0.0, le=1e6)] = 100.0  # of the decoder's game
    r1_gamma: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    r2_gamma: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    lr: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-3
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 50

    @property
    def differentiates_twice(self) -> bool:
        return max(self.r1_gamma, self.r2_gamma) > 0


class Autoencoder(nn.Module):
    """q(z|x, y), by a trunk like the discriminator's and an embedding of the class, and the decoder, a generator."""

    def __init__(self, config: Config, shape: DataShape) -> None:
        super().__init__()
        self.config = config
        self.trunk = players.make_trunk(config, shape)
        self.posterior = nn.Linear(self.trunk.num_features, 2 * config.latent_size)
        self.classes = nn.Embedding(shape.num_classes, 2 * config.latent_size) if shape.num_classes else None
        self.decoder = players.make_generator(config, shape)

    def encode(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x, y), (B, Z) each, for images in [-1, 1]."""
        posterior_BF = self.posterior(self.trunk(images_BCHW))
        if self.classes is not None:
            posterior_BF = posterior_BF + self.classes(labels_B)
        mean_BZ, log_variance_BZ = posterior_BF.chunk(2, dim=1)
        return mean_BZ, log_variance_BZ

    def forward(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] (around it where the output is linear)."""
        return players.bounded(self.decoder(z_BZ, labels_B), self.config)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """-log N(a; b, 1) without its constant, (B,): half the sum over an image of squared differences."""
    return 0.5 * (single(a) - single(b)).square().flatten(1).sum(1)


class VaeGanModel(Model):
    """Two networks, two phases."""

    def __init__(self, config: Config, shape: DataShape) -> None:
        self.config = config
        self.networks = {
            "autoencoder": Autoencoder(config, shape),
            "discriminator": Discriminator(
                players.make_trunk(config, shape, hidden=config.discriminator_hidden),
                shape.num_classes,
                bias=config.loss not in adversarial.ONLY_DIFFERENCES,  # it would drift
            ),
        }
        adam = Adam(
            lr=config.lr,
            beta1=0.0,
            beta2=config.beta2,
            warmup_steps=config.lr_warmup_steps,
            clip_norm=config.clip_norm,
        )
        self.optimizers = {"autoencoder": adam, "discriminator": adam}
        self.phases = [
            Phase("discriminator", "discriminator", self._discriminator_phase),
            Phase("autoencoder", "autoencoder", self._autoencoder_phase),
        ]
        self.sampler = "autoencoder"
        self.latent_size = config.latent_size

    def _draw(self, autoencoder: nn.Module, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """Latents of the posterior (B, Z) and its rate (B,) in nats."""
        assert isinstance(autoencoder, Autoencoder)
        mean_BZ, log_variance_BZ = autoencoder.encode(2 * batch.images_BCHW - 1, batch.labels_B)
        z_BZ = mean_BZ + (0.5 * log_variance_BZ).exp() * noise.normal(self.latent_size)
        return z_BZ, kl_to_standard_normal(mean_BZ, log_variance_BZ)

    def _discriminator_phase(
        self, networks: Networks, batch: Batch, noise: Noise, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config, autoencoder = self.config, networks["autoencoder"]
        labels_BM = batch.labels_B[:, None]
        with torch.no_grad():
            posterior_BZ, _ = self._draw(autoencoder, batch, noise)
            remade_BCHW = autoencoder(posterior_BZ, batch.labels_B)
            new_BCHW = autoencoder(noise.normal(self.latent_size), batch.labels_B)
        real_BCHW = (2 * batch.images_BCHW - 1).requires_grad_(config.r1_gamma > 0)
        new_BCHW.requires_grad_(config.r2_gamma > 0)
        real_B, remade_B, new_B = (
            networks["discriminator"](images_BCHW, labels_BM) for images_BCHW in (real_BCHW, remade_BCHW, new_BCHW)
        )
        against_remade = adversarial.discriminator_loss(config.loss, real_B, remade_B)
        against_new = adversarial.discriminator_loss(config.loss, real_B, new_B)
        loss = 0.5 * (against_remade + against_new)
        metrics = {"adversarial": loss.detach(), **adversarial.accuracies(config.loss, real_B, new_B)}
        penalties = (("r1", config.r1_gamma, real_B, real_BCHW), ("r2", config.r2_gamma, new_B, new_BCHW))
        for name, gamma, logits_B, images_BCHW in penalties:
            if gamma > 0:
                penalty = adversarial.gradient_penalty(logits_B, images_BCHW)
                loss = loss + 0.5 * gamma * penalty
                metrics[name] = penalty.detach()
        return loss, metrics

    def _autoencoder_phase(
        self, networks: Networks, batch: Batch, noise: Noise, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config, autoencoder, discriminator = self.config, networks["autoencoder"], networks["discriminator"]
        assert isinstance(discriminator, Discriminator)
        real_BCHW, labels_BM = 2 * batch.images_BCHW - 1, batch.labels_B[:, None]
        with torch.no_grad():
            real_maps = discriminator.trunk.maps(real_BCHW)
            real_B = discriminator.logits(real_maps, labels_BM)

        # --- What the encoder hears of: the prior, and the reconstruction's distance.
        z_BZ, rate_B = self._draw(autoencoder, batch, noise)
        remade_BCHW = autoencoder(z_BZ, batch.labels_B)
        features = squared_distance(discriminator.trunk.maps(remade_BCHW), real_maps).mean()
        pixels = squared_distance(remade_BCHW, real_BCHW).mean()
        rate = rate_B.mean()
        loss = self.kl_weight(step) * rate + config.feature_weight * features + config.pixel_weight * pixels

        # --- The decoder's game, with latents of the posterior and of the prior.
        for latents_BZ in (z_BZ.detach(), noise.normal(self.latent_size)):
            fake_BCHW = autoencoder(latents_BZ, batch.labels_B)
            game = adversarial.generator_loss(config.loss, real_B, discriminator(fake_BCHW, labels_BM))
            loss = loss + 0.5 * config.adversarial_weight * game
        metrics = {"rate": rate.detach(), "features": features.detach(), "pixels": pixels.detach()}
        return loss, metrics | {"adversarial": game.detach(), "pixel_std": players.spread(fake_BCHW)}

    def kl_weight(self, step: int) -> float:
        """beta, after a linear warm-up (Sonderby et al. 2016), which keeps latents from dying early."""
        warmup = self.config.kl_warmup_steps
        return self.config.beta * (min(1.0, (step + 1) / warmup) if warmup else 1.0)

    def decode(self, network: nn.Module, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """The decoder's images, moved to [0, 1]."""
        return players.to_unit(network(z_BZ, labels_B))

    def image_figures(
        self, network: nn.Module, images_BCHW: Tensor, labels_B: Tensor, noise: Noise
    ) -> dict[str, Tensor]:
        """The rate in nats, (B,). There is no likelihood of pixels to report."""
        assert isinstance(network, Autoencoder)
        return {"rate": kl_to_standard_normal(*network.encode(2 * images_BCHW - 1, labels_B))}

    def alarms(self) -> Sequence[Alarm]:
        # None for the discriminator: the reconstruction's gradient hides what the game's has lost.
        advice = "lower beta, or raise kl_warmup_steps, feature_weight or pixel_weight"
        return [posterior_collapsed("autoencoder", self.config.kl_warmup_steps, advice)]

    def posterior_means(self, network: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Means of q(z|x, y), (B, Z)."""
        assert isinstance(network, Autoencoder)
        mean_BZ: Tensor = network.encode(2 * images_BCHW - 1, labels_B)[0]
        return mean_BZ


def build(config: Config, shape: DataShape) -> Model:
    """Make the VAE/GAN for images of `shape`."""
    return VaeGanModel(config, shape)
