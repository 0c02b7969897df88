"""Two-dimensional Gaussian mixtures, on which one can count what a generator drops: the data and the figures.

The protocol of PacGAN (Lin et al. 2018, section 4.1; after Srivastava et al. 2017, 'VEEGAN'): 2,500 generated points; a
point is good within three standard deviations of its nearest mode; a mode counts with one good point; the reverse
Kullback-Leibler divergence is that of the modes' histogram (every point counts for its nearest mode) from the true one.
A perfect sampler scores all modes, 1 - exp(-4.5) = 98.9% good points and a divergence of (modes - 1) / (2 points).

Shape legend: N points, K modes, D = 2 coordinates.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GOOD_SIGMAS = 3.0
NUM_POINTS = 2500  # that the protocol scores


@dataclass(frozen=True)
class Mixture:
    """Equally likely modes with the same standard deviation in both coordinates."""

    name: str
    means_KD: Tensor
    sigma: float

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Points (N, D)."""
        modes_N = torch.randint(len(self.means_KD), (count,), generator=generator)
        return self.means_KD[modes_N] + self.sigma * torch.randn(count, 2, generator=generator)


def ring8() -> Mixture:
    """Eight modes on the unit circle, standard deviation 0.01."""
    angles_K = torch.arange(8) * (2 * math.pi / 8)
    return Mixture("ring8", torch.stack([angles_K.cos(), angles_K.sin()], 1), sigma=0.01)


def grid25() -> Mixture:
    """Twenty-five modes at {-4, -2, 0, 2, 4}^2, standard deviation 0.05."""
    line = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])
    return Mixture("grid25", torch.cartesian_prod(line, line), sigma=0.05)


def to_images(points_ND: Tensor, scale: float) -> Tensor:
    """Points as images (N, 2, 1, 1) of which an adversarial family's networks see `scale * point`; not in [0, 1]."""
    return ((scale * points_ND + 1) / 2)[:, :, None, None]


def from_network(output_NCHW: Tensor, scale: float) -> Tensor:
    """The points (N, D) of a generator's own, linear output (N, 2, 1, 1)."""
    return output_NCHW.flatten(1) / scale


@dataclass(frozen=True)
class Scores:
    """The protocol's figures of one set of points."""

    modes: int
    good: float  # share of points
    reverse_kl: float  # nats


def score(mixture: Mixture, points_ND: Tensor) -> Scores:
    """Score generated points (N, D)."""
    distance_N, nearest_N = torch.cdist(points_ND.double(), mixture.means_KD.double()).min(1)
    good_N = distance_N <= GOOD_SIGMAS * mixture.sigma
    count = len(mixture.means_KD)
    share_K = torch.bincount(nearest_N, minlength=count).double() / len(points_ND)
    return Scores(
        modes=int((torch.bincount(nearest_N[good_N], minlength=count) > 0).sum()),
        good=good_N.double().mean().item(),
        reverse_kl=(torch.special.xlogy(share_K, share_K).sum() + math.log(count)).item(),
    )
