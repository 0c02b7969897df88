"""Bounds of log p(x) for networks with latents, and what else is read from their posteriors.

Shape legend: B and N images, K draws of the latents an image, C channels, H height, W width, Z latent size, G groups.
"""

import math

import torch
from torch import Tensor

from trainers.families import Noise
from trainers.networks.latent import LatentNetwork

CHUNK_VALUES = 2**20  # pixel values decoded at once for an importance-weighted bound: bounds its memory
ACTIVE_VARIANCE = 0.01  # of a latent's posterior mean over images, to count as used (Burda et al. 2016)


def importance_bound(log_weights_BK: Tensor) -> Tensor:
    """log of the mean of K importance weights, (B,): a lower bound of log p(x) in nats (Burda et al. 2016)."""
    return log_weights_BK.logsumexp(1) - math.log(log_weights_BK.shape[1])


def rate_beyond_free_bits(rate_BG: Tensor, free_bits: float) -> Tensor:
    """The rate that is charged, (B,): each group's, but at least `free_bits` nats (Kingma et al. 2016, appendix C.8).

    The paper takes the maximum after the mean over the minibatch. Here it is taken for each image, so that the loss
    is a mean over images and does not depend on how many workers share a batch.
    """
    return (rate_BG.clamp(min=free_bits) if free_bits else rate_BG).sum(1)


def active_units(means_NZ: Tensor) -> Tensor:
    """Which latents are used, (Z,) bool: the variance of their posterior mean over images is above 0.01.

    Burda et al. 2016, section 5.1. `means_NZ` is `LatentNetwork.posterior_means` of N images.
    """
    return means_NZ.var(0) > ACTIVE_VARIANCE


@torch.no_grad()
def log_likelihood(
    network: LatentNetwork, images_BCHW: Tensor, labels_B: Tensor, noise: Noise, num_samples: int, chunk: int = 0
) -> Tensor:
    """log p(x|y) in nats, (B,) float64, from below with `num_samples` importance samples (Burda et al. 2016).

    `chunk` draws an image are decoded at once (0: as many as keep near CHUNK_VALUES pixel values); the result does not
    depend on it, as each draw has noise of its own. `images_BCHW` are taken as they are: binarise them before.
    """
    outputs = network.likelihood.outputs * images_BCHW[0, 0].numel()
    chunk = chunk or max(1, CHUNK_VALUES // (len(images_BCHW) * outputs))
    posterior = network.posterior(images_BCHW, labels_B)
    total_B = torch.full((len(images_BCHW),), -math.inf, dtype=torch.float64, device=images_BCHW.device)
    for start in range(0, num_samples, chunk):
        draws = range(start, min(start + chunk, num_samples))
        noise_BKZ = torch.stack([noise.normal(network.latent_size) for _ in draws], 1)
        log_weights_BK = network.terms(posterior, images_BCHW, labels_B, noise_BKZ).log_weights()
        total_B = torch.logaddexp(total_B, log_weights_BK.double().logsumexp(1))
    return total_B - math.log(num_samples)
