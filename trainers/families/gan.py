"""The generative adversarial network (Goodfellow et al. 2014), conditional where images carry labels.

Two networks and two phases a step: the discriminator, with zero-centred gradient penalties on real (R1) and generated
(R2) images, then the generator. `relativistic` is the loss of R3GAN (Huang et al. 2024), whose habits the networks
follow: no normalisation layers, bilinear resampling, Adam with beta1 0. The discriminator meets the class by projection
(Miyato & Koyama 2018), the generator by an embedding beside its latent.

The networks see images in [-1, 1].
Shape legend: B images, P packs of M images, C channels, H height, W width, Z latent size.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainers import adaptive, adversarial
from trainers.adversarial import LossName
from trainers.alarms import Alarm, discriminator_won
from trainers.families import Adam, Batch, DataShape, Model, Networks, Noise, Phase
from trainers.networks import players
from trainers.networks.players import Discriminator, PlayersConfig


class Config(PlayersConfig):
    """The GAN's fields of a recipe's model section."""

    loss: LossName = "relativistic"
    r1_gamma: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    r2_gamma: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    gamma_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # what both gammas are multiplied by in the end
    gamma_decay_steps: Annotated[int, Field(ge=0)] = 0  # of the way there, which is geometric; 0: no decay
    penalty: Literal["exact", "perturbed"] = "exact"  # perturbed: no double backward
    penalty_sigma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01  # of the perturbation, where pixels are in [-1, 1]
    pack: Annotated[int, Field(ge=1, le=16)] = 1  # images that the discriminator judges together
    ada_target: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # mean sign of real logits (0.6 in the paper); 0: off
    ada_images: Annotated[int, Field(ge=1)] = 500_000  # images in which the chance may go from 0 to 1
    lr: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-3
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 50
    lr_decay: Literal["none", "cosine"] = "none"  # measured: decay made the samples worse

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        """A field that would be ignored is refused, with the setting that it belongs to."""
        needs = {
            "penalty_sigma": (self.penalty == "perturbed", "penalty: perturbed"),
            "ada_images": (self.ada_target > 0, "ada_target above 0"),
            "gamma_decay": (self.gamma_decay_steps > 0, "gamma_decay_steps above 0"),
        }
        for field, (fits, setting) in needs.items():
            if field in self.model_fields_set and not fits:
                raise ValueError(f"{field} is used with {setting} only")
        return self

    @property
    def differentiates_twice(self) -> bool:
        return self.penalty == "exact" and max(self.r1_gamma, self.r2_gamma) > 0

    @property
    def adapts_to_batches(self) -> bool:
        return self.ada_target > 0

    def gammas(self, step: int) -> dict[str, float]:
        """The penalties' weights of a step. They fall as in R3GAN's recipe (Huang et al. 2024), here geometrically."""
        done = min(1.0, step / self.gamma_decay_steps) if self.gamma_decay_steps else 0.0
        factor: float = self.gamma_decay**done
        return {"r1": self.r1_gamma * factor, "r2": self.r2_gamma * factor}


class GanModel(Model):
    """Two networks, two phases."""

    def __init__(self, config: Config, shape: DataShape) -> None:
        self.config = config
        generator = players.make_generator(config, shape)
        discriminator = Discriminator(
            players.make_trunk(config, shape, config.pack, config.discriminator_hidden),
            shape.num_classes,
            # A loss that sees differences of logits only would let a bias drift.
            bias=config.loss not in adversarial.ONLY_DIFFERENCES,
            adaptive=config.ada_target > 0,
        )
        self.networks = {"generator": generator, "discriminator": discriminator}
        adam = Adam(
            lr=config.lr,
            beta1=0.0,
            beta2=config.beta2,
            warmup_steps=config.lr_warmup_steps,
            decay=config.lr_decay,
            clip_norm=config.clip_norm,
        )
        self.optimizers = {"generator": adam, "discriminator": adam}
        self.phases = [
            Phase("discriminator", "discriminator", self._discriminator_phase),
            Phase("generator", "generator", self._generator_phase),
        ]
        self.sampler = "generator"
        self.latent_size = config.latent_size

    def _generate(self, networks: Networks, batch: Batch, noise: Noise) -> Tensor:
        images_BCHW = networks["generator"](noise.normal(self.latent_size), batch.labels_B)
        return players.bounded(images_BCHW, self.config)

    def _shown(self, images_BCHW: Tensor, discriminator: nn.Module, noise: Noise) -> Tensor:
        """Images (B, C, H, W) as the discriminator meets them: augmented where it is on, in packs (P, M * C, H, W)."""
        if self.config.ada_target > 0:
            assert isinstance(discriminator.chance, Tensor)
            images_BCHW = adaptive.augmented(images_BCHW, discriminator.chance, noise)
        return players.packed(images_BCHW, self.config.pack)

    def _discriminator_phase(
        self, networks: Networks, batch: Batch, noise: Noise, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config, discriminator = self.config, networks["discriminator"]
        labels_PM = players.packed(batch.labels_B, config.pack)

        def critic(images_PCHW: Tensor) -> Tensor:
            logits_P: Tensor = discriminator(images_PCHW, labels_PM)
            return logits_P

        with torch.no_grad():
            fake_PCHW = self._shown(self._generate(networks, batch, noise), discriminator, noise)
            real_PCHW = self._shown(2 * batch.images_BCHW - 1, discriminator, noise)
        gammas = config.gammas(step)
        real_PCHW.requires_grad_(config.penalty == "exact" and config.r1_gamma > 0)
        fake_PCHW.requires_grad_(config.penalty == "exact" and config.r2_gamma > 0)
        real_P, fake_P = critic(real_PCHW), critic(fake_PCHW)
        loss = adversarial.discriminator_loss(config.loss, real_P, fake_P)
        metrics = {"adversarial": loss.detach(), **adversarial.accuracies(config.loss, real_P, fake_P)}
        for name, logits_P, images_PCHW in (("r1", real_P, real_PCHW), ("r2", fake_P, fake_PCHW)):
            if gammas[name] == 0:
                continue
            if config.penalty == "exact":
                penalty = adversarial.gradient_penalty(logits_P, images_PCHW)
            else:
                direction_PCHW = players.packed(noise.normal(*batch.images_BCHW.shape[1:]), config.pack)
                penalty = adversarial.perturbed_penalty(
                    critic, logits_P, images_PCHW, direction_PCHW, config.penalty_sigma
                )
            loss = loss + 0.5 * gammas[name] * penalty
            metrics[name] = penalty.detach()
        if config.ada_target > 0:
            metrics |= self._adapt(discriminator, real_P, fake_P, batch)
        return loss, metrics

    def _adapt(self, discriminator: nn.Module, real_P: Tensor, fake_P: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Move the chance for the next step. Logits count from 0 or, where it means nothing, from their partner's."""
        assert isinstance(discriminator.chance, Tensor)
        reference_P = fake_P if self.config.loss in adversarial.ONLY_DIFFERENCES else torch.zeros_like(real_P)
        sign = adaptive.overfitting(real_P, reference_P, batch.global_size // self.config.pack)
        adaptive.adapt(discriminator.chance, sign, self.config.ada_target, batch.global_size / self.config.ada_images)
        return {"overfitting": sign.mean(), "augment_chance": discriminator.chance.mean()}

    def _generator_phase(
        self, networks: Networks, batch: Batch, noise: Noise, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        discriminator = networks["discriminator"]
        labels_PM = players.packed(batch.labels_B, self.config.pack)
        fake_BCHW = self._generate(networks, batch, noise)
        fake_P = discriminator(self._shown(fake_BCHW, discriminator, noise), labels_PM)
        real_P = fake_P.detach()
        if self.config.loss == "relativistic":  # the others do not look at it
            with torch.no_grad():
                real_P = discriminator(self._shown(2 * batch.images_BCHW - 1, discriminator, noise), labels_PM)
        loss = adversarial.generator_loss(self.config.loss, real_P, fake_P)
        return loss, {"pixel_std": players.spread(fake_BCHW)}

    def decode(self, network: nn.Module, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """The generator's images, moved to [0, 1]."""
        return players.to_unit(players.bounded(network(z_BZ, labels_B), self.config))

    def alarms(self) -> Sequence[Alarm]:
        advice = "raise r1_gamma and r2_gamma, lower lr, or with few images set ada_target: 0.6"
        return [discriminator_won("discriminator", "generator", advice)]


def build(config: Config, shape: DataShape) -> Model:
    """Make the GAN for images of `shape`."""
    return GanModel(config, shape)
