"""What a network with a latent variable is to its losses: latent groups in standard form, and a likelihood.

Every group of latents is written in standard form: the network works with e, whose prior is N(0, 1) for each value,
and whatever else its prior says (a mean and a scale that depend on the groups above) is a map of e. The posterior is
N(mean, variance) of e, so the KL divergence, importance weights and sampling are the same few lines for one latent
vector and for a hierarchy; a hierarchy's posterior is then relative to its prior ('residual': Vahdat & Kautz 2020).

Shape legend: B images, K samples an image, Z latent size, G latent groups, C channels, P output channels, H, W.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainers.likelihoods import Likelihood
from trainers.precision import full, single


def kl_to_standard_normal(mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats, (B,) (Kingma & Welling 2014, appendix B)."""
    mean_BZ, log_variance_BZ = single(mean_BZ), single(log_variance_BZ)
    return 0.5 * (mean_BZ**2 + log_variance_BZ.exp() - 1 - log_variance_BZ).flatten(1).sum(1)


def log_ratio_to_standard_normal(value_BZ: Tensor, noise_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """log N(value; 0, 1) - log N(value; mean, variance) in nats, (B,), where value is mean + deviation * noise."""
    return 0.5 * (noise_BZ**2 + log_variance_BZ - value_BZ**2).flatten(1).sum(1)


@dataclass(frozen=True)
class Inferred:
    """A decoder's output for latents drawn from the posterior, and what they cost."""

    output_BPHW: Tensor
    rate_BG: Tensor  # KL divergence of each group's posterior from its prior, given the groups above
    log_ratio_B: Tensor  # log p(z) - log q(z|x) at the drawn z
    mean_BZ: Tensor  # the posterior's mean


class Terms(NamedTuple):
    """What the losses are made of, in nats: K draws of z for each image."""

    distortion_BK: Tensor  # -log p(x|z)
    rate_BKG: Tensor  # KL(q(z_g|x, above) || p(z_g|above)) of each group
    log_ratio_BK: Tensor  # log p(z) - log q(z|x)

    def log_weights(self, kl_weight: float = 1.0) -> Tensor:
        """log of p(x, z) / q(z|x), (B, K): the importance weights of Burda et al. 2016; the ratio p(z) / q(z|x) to the
        power `kl_weight`, which is 1 but while the KL term warms up."""
        return kl_weight * self.log_ratio_BK - self.distortion_BK


class LatentNetwork(nn.Module, ABC):
    """An encoder q(z|x, y) and a decoder p(x|z, y) whose output `likelihood` reads."""

    latent_size: int
    likelihood: Likelihood
    log_scale: Tensor  # a parameter or a buffer, (1,)

    @abstractmethod
    def posterior(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, ...]:
        """What the encoder makes of images in [0, 1], once for any number of draws: tensors (B, ...)."""

    @abstractmethod
    def infer(self, posterior: tuple[Tensor, ...], labels_B: Tensor, noise_BZ: Tensor) -> Inferred:
        """Latents drawn from the posterior by standard normal noise, decoded and counted."""

    @abstractmethod
    def decode(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """The decoder's output (B, P, H, W) for standard normal latents."""

    def terms(self, posterior: tuple[Tensor, ...], images_BCHW: Tensor, labels_B: Tensor, noise_BKZ: Tensor) -> Terms:
        """The terms of the losses at K draws an image; memory grows with B * K."""
        draws = noise_BKZ.shape[1]
        if draws > 1:
            posterior = tuple(tensor.repeat_interleave(draws, 0) for tensor in posterior)
            images_BCHW, labels_B = images_BCHW.repeat_interleave(draws, 0), labels_B.repeat_interleave(draws, 0)
        found = self.infer(posterior, labels_B, noise_BKZ.flatten(0, 1))
        with full(images_BCHW.device):
            distortion = self.likelihood.distortion(single(found.output_BPHW), images_BCHW, self.log_scale)
        groups = found.rate_BG.shape[1]
        return Terms(
            distortion.view(-1, draws), found.rate_BG.view(-1, draws, groups), found.log_ratio_B.view(-1, draws)
        )

    def forward(self, images_BCHW: Tensor, labels_B: Tensor, noise_BKZ: Tensor) -> Terms:
        """The terms of the losses for images in [0, 1] and standard normal noise."""
        return self.terms(self.posterior(images_BCHW, labels_B), images_BCHW, labels_B, noise_BKZ)

    @torch.no_grad()
    def posterior_means(self, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Means of q(z|x), (B, Z), in standard form; in a hierarchy, given the means of the groups above."""
        noise_BZ = images_BCHW.new_zeros(len(images_BCHW), self.latent_size)
        return self.infer(self.posterior(images_BCHW, labels_B), labels_B, noise_BZ).mean_BZ
