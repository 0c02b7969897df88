"""Likelihoods p(x|z) of images in [0, 1]: what a decoder's output means, what an image costs under it, how to draw one.

A decoder gives `outputs` channels a pixel; a likelihood reads them as logits, means or mixtures. Pure functions first;
then one class a likelihood, without state, behind the interface `Likelihood`. Costs are in nats.

Shape legend: B images, C channels, H height, W width, P output channels, N noise values an image, K mixture components.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from trainers.families import Observes

LOG_2_PI = math.log(2 * math.pi)
MIN_LOG_SCALE = -6.0  # a learned scale may not reach 0: its density would be unbounded (Rybkin et al. 2021)
LEVELS = 255  # the largest uint8: pixel values are multiples of 1 / LEVELS
LOGISTIC_LOG_SCALE = 7.0  # bound of both sides: narrower than a tenth of a level gains nothing (PixelCNN++'s), and far
# wider a bin's mass leaves float32
UNIFORM_MARGIN = 1e-5  # a uniform number of exactly 0 would put a logistic draw at infinity


def bernoulli_distortion(logits_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """-log p(x|z) in nats, (B,), for pixels in [0, 1].

    Linear in the pixel, so for a grey image this is its mean over images binarised at random with the pixels
    as probabilities (the 'dynamic binarisation' of Burda et al. 2016).
    """
    return functional.binary_cross_entropy_with_logits(logits_BCHW, images_BCHW, reduction="none").flatten(1).sum(1)


def gaussian_distortion(mean_BCHW: Tensor, images_BCHW: Tensor, log_scale: Tensor) -> Tensor:
    """-log N(x; mean, scale^2) in nats, (B,); of a density, so it may be negative (Rybkin et al. 2021).

    `log_scale` is one value or one a pixel (B, C, H, W).
    """
    squared = ((images_BCHW - mean_BCHW) / log_scale.exp()) ** 2
    return (0.5 * (squared + LOG_2_PI) + log_scale).flatten(1).sum(1)


def logistic_bin_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log of a logistic's mass on the bin of width 2/255 around `x`, a level moved to [-1, 1]; shapes broadcast.

    The first and the last bin reach to infinity (Salimans et al. 2017, equation 2). Inner bins use
    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which has no cancellation, so that no
    approximation is needed far from the mean.
    """
    inverse_scale = torch.exp(-log_scale)
    width = 2 * inverse_scale / LEVELS
    upper = (x - mean) * inverse_scale + width / 2
    lower = upper - width
    below_upper, above_lower = functional.logsigmoid(upper), functional.logsigmoid(-lower)
    inner = below_upper + above_lower + torch.log(-torch.expm1(-width))
    half_bin = 1 / LEVELS
    return torch.where(x < half_bin - 1, below_upper, torch.where(x > 1 - half_bin, above_lower, inner))


def num_couplings(channels: int) -> int:
    """Coefficients of a mixture component by which each channel's mean depends on those before it."""
    return channels * (channels - 1) // 2


def split_mixture(output_BPHW: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mixture logits (B, K, H, W), means and log scales (B, C, K, H, W), couplings (B, C(C-1)/2, K, H, W).

    The couplings lie in (-1, 1) and in the order (1,0), (2,0), (2,1), ... as in PixelCNN++.
    """
    parts = 1 + 2 * channels + num_couplings(channels)
    batch, outputs, height, width = output_BPHW.shape
    whole = output_BPHW.view(batch, parts, outputs // parts, height, width)
    means, log_scales = whole[:, 1 : 1 + channels], whole[:, 1 + channels : 1 + 2 * channels]
    return (
        whole[:, 0],
        means,
        log_scales.clamp(-LOGISTIC_LOG_SCALE, LOGISTIC_LOG_SCALE),
        whole[:, 1 + 2 * channels :].tanh(),
    )


def mixture_distortion(output_BPHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """-log p(x|z) in nats, (B,), of a mixture of discretised logistics (Salimans et al. 2017, PixelCNN++).

    Pixels in [0, 1] count as the nearest of their 256 levels. A component is chosen for all channels of a pixel; the
    mean of a channel is linear in the channels before it (section 2.2 of the paper).
    """
    x_BCHW = 2 * (images_BCHW * LEVELS).round() / LEVELS - 1
    channels = x_BCHW.shape[1]
    logits_BKHW, means, log_scales, couplings = split_mixture(output_BPHW, channels)
    log_prob_BKHW = logits_BKHW.log_softmax(1)
    for channel in range(channels):
        mean_BKHW = means[:, channel]
        for before in range(channel):
            coupling_BKHW = couplings[:, num_couplings(channel) + before]
            mean_BKHW = mean_BKHW + coupling_BKHW * x_BCHW[:, before, None]
        x_B1HW = x_BCHW[:, channel, None]
        log_prob_BKHW = log_prob_BKHW + logistic_bin_log_prob(x_B1HW, mean_BKHW, log_scales[:, channel])
    return -log_prob_BKHW.logsumexp(1).flatten(1).sum(1)


def mixture_mean(output_BPHW: Tensor, channels: int) -> Tensor:
    """The components' means (each channel given the means before it), weighed by the mixture: (B, C, H, W) in [0, 1].

    The mean of p(x|z) but for what the edges of the range cut off each component.
    """
    logits_BKHW, means, _, couplings = split_mixture(output_BPHW, channels)
    found: list[Tensor] = []
    for channel in range(channels):
        mean_BKHW = means[:, channel]
        for before in range(channel):
            mean_BKHW = mean_BKHW + couplings[:, num_couplings(channel) + before] * found[before]
        found.append(mean_BKHW.clamp(-1, 1))
    weighed = torch.stack(found, 1) * logits_BKHW.softmax(1)[:, None]
    return ((weighed.sum(2) + 1) / 2).clamp(0, 1)  # weights sum to 1 but for rounding


def mixture_draw(output_BPHW: Tensor, uniform_BUHW: Tensor) -> Tensor:
    """An image (B, C, H, W) of levels in [0, 1] from p(x|z), by uniform numbers: U = 1 + C planes.

    The first plane chooses the component by its cumulative weight, the others invert a logistic's distribution;
    rounding to the nearest level gives each level the mass of its bin.
    """
    channels = uniform_BUHW.shape[1] - 1
    logits_BKHW, means, log_scales, couplings = split_mixture(output_BPHW, channels)
    below_BKHW = logits_BKHW.softmax(1).cumsum(1)[:, :-1]
    chosen_B1HW = (uniform_BUHW[:, :1] >= below_BKHW).sum(1, keepdim=True)

    def of_chosen(values_BKHW: Tensor) -> Tensor:
        return values_BKHW.gather(1, chosen_B1HW).squeeze(1)

    drawn: list[Tensor] = []
    for channel in range(channels):
        mean_BHW = of_chosen(means[:, channel])
        for before in range(channel):
            mean_BHW = mean_BHW + of_chosen(couplings[:, num_couplings(channel) + before]) * drawn[before]
        u_BHW = uniform_BUHW[:, 1 + channel].clamp(UNIFORM_MARGIN, 1 - UNIFORM_MARGIN)
        x_BHW = mean_BHW + of_chosen(log_scales[:, channel]).exp() * torch.logit(u_BHW)
        drawn.append(2 * ((x_BHW.clamp(-1, 1) + 1) / 2 * LEVELS).round() / LEVELS - 1)
    return (torch.stack(drawn, 1) + 1) / 2


class Likelihood(ABC):
    """How a decoder's output (B, P, H, W) is read. `log_scale` is the network's own scale, where one is used."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    @property
    @abstractmethod
    def outputs(self) -> int:
        """P, the channels that the decoder must give."""

    @property
    @abstractmethod
    def observes(self) -> Observes:
        """What an image is to it."""

    @property
    def noise_channels(self) -> int:
        """Standard normal values a pixel that `draw` takes."""
        return self.channels

    @abstractmethod
    def distortion(self, output_BPHW: Tensor, images_BCHW: Tensor, log_scale: Tensor) -> Tensor:
        """-log p(x|z) in nats, (B,)."""

    @abstractmethod
    def mean(self, output_BPHW: Tensor) -> Tensor:
        """The expected image (B, C, H, W) in [0, 1]."""

    @abstractmethod
    def draw(self, output_BPHW: Tensor, normal_BNHW: Tensor, log_scale: Tensor) -> Tensor:
        """An image (B, C, H, W) in [0, 1] from p(x|z), made of standard normal values (N is `noise_channels`)."""


class Bernoulli(Likelihood):
    """Each value is 1 with the probability whose logit the decoder gives."""

    @property
    def observes(self) -> Observes:
        return Observes("Bernoulli")

    @property
    def outputs(self) -> int:
        return self.channels

    def distortion(self, output_BPHW: Tensor, images_BCHW: Tensor, log_scale: Tensor) -> Tensor:
        return bernoulli_distortion(output_BPHW, images_BCHW)

    def mean(self, output_BPHW: Tensor) -> Tensor:
        return output_BPHW.sigmoid()

    def draw(self, output_BPHW: Tensor, normal_BNHW: Tensor, log_scale: Tensor) -> Tensor:
        uniform_BCHW: Tensor = torch.special.ndtr(normal_BNHW)
        return (uniform_BCHW < output_BPHW.sigmoid()).to(output_BPHW.dtype)


class Gaussian(Likelihood):
    """Each value is normal around the decoder's mean; the scale is the network's, or (`per_pixel`) times its output."""

    def __init__(self, channels: int, per_pixel: bool) -> None:
        super().__init__(channels)
        self.per_pixel = per_pixel

    @property
    def observes(self) -> Observes:
        return Observes("Gaussian density", math.log2(LEVELS))

    @property
    def outputs(self) -> int:
        return self.channels * (2 if self.per_pixel else 1)

    def split(self, output_BPHW: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """Means (B, C, H, W) and log scales, which are not below MIN_LOG_SCALE."""
        if not self.per_pixel:
            return output_BPHW, log_scale.clamp(min=MIN_LOG_SCALE)
        mean_BCHW, own_BCHW = output_BPHW.chunk(2, 1)
        return mean_BCHW, (log_scale + own_BCHW).clamp(min=MIN_LOG_SCALE)

    def distortion(self, output_BPHW: Tensor, images_BCHW: Tensor, log_scale: Tensor) -> Tensor:
        mean_BCHW, scale = self.split(output_BPHW, log_scale)
        return gaussian_distortion(mean_BCHW, images_BCHW, scale)

    def mean(self, output_BPHW: Tensor) -> Tensor:
        return output_BPHW[:, : self.channels].clamp(0, 1)

    def draw(self, output_BPHW: Tensor, normal_BNHW: Tensor, log_scale: Tensor) -> Tensor:
        mean_BCHW, scale = self.split(output_BPHW, log_scale)
        return (mean_BCHW + scale.exp() * normal_BNHW).clamp(0, 1)


class LogisticMixture(Likelihood):
    """Each pixel is one of 256 levels a channel, from a mixture of discretised logistics (Salimans et al. 2017)."""

    def __init__(self, channels: int, components: int) -> None:
        super().__init__(channels)
        self.components = components

    @property
    def observes(self) -> Observes:
        return Observes("256 levels")

    @property
    def outputs(self) -> int:
        return self.components * (1 + 2 * self.channels + num_couplings(self.channels))

    @property
    def noise_channels(self) -> int:
        return 1 + self.channels

    def distortion(self, output_BPHW: Tensor, images_BCHW: Tensor, log_scale: Tensor) -> Tensor:
        return mixture_distortion(output_BPHW, images_BCHW)

    def mean(self, output_BPHW: Tensor) -> Tensor:
        return mixture_mean(output_BPHW, self.channels)

    def draw(self, output_BPHW: Tensor, normal_BNHW: Tensor, log_scale: Tensor) -> Tensor:
        return mixture_draw(output_BPHW, torch.special.ndtr(normal_BNHW))
