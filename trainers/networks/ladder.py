"""A hierarchy of latents: a way up that reads the image, a way down that draws latents from coarse to fine.

In the manner of the ladder VAE (Sonderby et al. 2016) and of VDVAE (Child 2021, figure 3): a residual stream h runs
from a learned constant at the coarsest grid to the image; each latent block adds to it a draw of its own group, whose
prior depends on h, so on all groups above, and whose posterior also sees the way up at that grid.

Shape legend: B images, C channels, H height, W width, P output channels, L latent channels of a group,
Z all latents of an image, groups one after the other from the coarsest, G groups.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.likelihoods import Likelihood
from trainers.networks.blocks import BottomUp, Enlarge, Grid, ResidualBlock, TowerSize, conv, pyramid
from trainers.networks.latent import Inferred, LatentNetwork, kl_to_standard_normal, log_ratio_to_standard_normal

LOG_SCALE_BOUND = 5.0  # deviations lie between exp(-5) and exp(5) of what they are relative to (NVAE, appendix)
HEAD_SCALE = 0.1  # initial weights of the heads: priors and posteriors start near N(0, 1)


def bounded(log_scale: Tensor) -> Tensor:
    """Smoothly into (-LOG_SCALE_BOUND, LOG_SCALE_BOUND): an exponential of a free output can overflow early on."""
    return LOG_SCALE_BOUND * torch.tanh(log_scale / LOG_SCALE_BOUND)


def spread(depth: int, grids: Sequence[Grid]) -> list[int]:
    """Latent groups at each grid, finest first: in equal parts, the remainder to the coarser ones.

    None at the image's own grid where there are others: there they cost the most and carry the least.
    """
    usable = max(1, len(grids) - 1)
    share, rest = divmod(depth, usable)
    counts = [share + (index < rest) for index in range(usable)]  # coarsest first
    return ([0] if len(grids) > 1 else []) + counts[::-1]


class Drawn(NamedTuple):
    """One latent group of a batch, drawn from its posterior, in standard form (`trainers.networks.latent`)."""

    value_BLHW: Tensor
    noise_BLHW: Tensor
    mean_BLHW: Tensor
    log_variance_BLHW: Tensor


class LatentBlock(nn.Module):
    """One group of latents at one grid: its prior, its posterior, and what a draw does to the stream."""

    def __init__(self, channels: int, latent_channels: int, scale: float) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.prior_body = ResidualBlock(channels, scale)
        self.prior_head = conv(channels, 2 * latent_channels + channels, size=1, scale=HEAD_SCALE)
        self.posterior_merge = conv(2 * channels, channels)
        self.posterior_body = ResidualBlock(channels, scale)
        self.posterior_head = conv(channels, 2 * latent_channels, size=1, scale=HEAD_SCALE)
        self.entry = conv(latent_channels, channels, size=1, scale=scale)
        self.after = ResidualBlock(channels, scale)

    def prior(self, h_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log deviation of p(z|above), (B, L, H, W) each, and what the prior tells the stream (B, C, H, W)."""
        outputs = self.prior_head(functional.silu(self.prior_body(h_BCHW)))
        mean, log_scale = outputs[:, : 2 * self.latent_channels].chunk(2, 1)
        return mean, bounded(log_scale), outputs[:, 2 * self.latent_channels :]

    def draw(self, h_BCHW: Tensor, features_BCHW: Tensor, noise_BLHW: Tensor) -> Drawn:
        """A draw from q(z|x, above) in standard form: relative to the prior's mean, in units of its deviation."""
        merged_BCHW = self.posterior_body(self.posterior_merge(torch.cat([h_BCHW, features_BCHW], 1)))
        mean_BLHW, log_scale_BLHW = self.posterior_head(functional.silu(merged_BCHW)).chunk(2, 1)
        log_scale_BLHW = bounded(log_scale_BLHW)
        value_BLHW = mean_BLHW + log_scale_BLHW.exp() * noise_BLHW
        return Drawn(value_BLHW, noise_BLHW, mean_BLHW, 2 * log_scale_BLHW)

    def forward(self, h_BCHW: Tensor, features_BCHW: Tensor | None, noise_BLHW: Tensor) -> tuple[Tensor, Drawn | None]:
        """The stream (B, C, H, W) after the group's latents, drawn from the posterior, or from the prior without it."""
        drawn = None if features_BCHW is None else self.draw(h_BCHW, features_BCHW, noise_BLHW)
        mean_BLHW, log_scale_BLHW, told_BCHW = self.prior(h_BCHW)
        z_BLHW = mean_BLHW + log_scale_BLHW.exp() * (drawn.value_BLHW if drawn else noise_BLHW)
        return self.after(h_BCHW + told_BCHW + self.entry(z_BLHW)), drawn


class Stage(nn.Module):
    """What the way down does at one grid: come from the coarser one, then latent blocks, or plain ones without."""

    def __init__(
        self, enlarge: Enlarge | None, channels: int, groups: int, latent_channels: int, size: TowerSize, scale: float
    ) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.latents = nn.ModuleList(LatentBlock(channels, latent_channels, scale) for _ in range(groups))
        plain = 0 if groups else size.blocks
        self.plain = nn.Sequential(*(ResidualBlock(channels, scale) for _ in range(plain)))

    def forward(
        self, h_BCHW: Tensor, features_BCHW: Tensor | None, noises: Iterator[Tensor]
    ) -> tuple[Tensor, list[Drawn]]:
        """The stream after this grid, and what was drawn from posteriors; takes its own from `noises`."""
        if self.enlarge is not None:
            h_BCHW = self.enlarge(h_BCHW)
        found: list[Drawn] = []
        for block in self.latents:
            h_BCHW, drawn = block(h_BCHW, features_BCHW, next(noises))
            found.extend([drawn] if drawn else [])
        return self.plain(h_BCHW), found


class Ladder(LatentNetwork):
    """`depth` groups of latents over the grids of the image."""

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        num_classes: int,
        depth: int,
        latent_channels: int,
        size: TowerSize,
        likelihood: Likelihood,
    ) -> None:
        super().__init__()
        self.likelihood = likelihood
        grids = pyramid(height, width, size.smallest)
        self.counts = spread(depth, grids)[::-1]  # of groups at each grid, coarsest first
        self.groups = [  # shapes (L, H, W), coarsest first
            (latent_channels, *grid)
            for grid, count in zip(reversed(grids), self.counts, strict=True)
            for _ in range(count)
        ]
        self.latent_size = sum(math.prod(group) for group in self.groups)
        widest = size.channels(grids[-1])
        self.down = BottomUp(channels, grids, size)
        self.top = nn.Parameter(0.1 * torch.randn(1, widest, *grids[-1]))
        self.encoder_classes = nn.Embedding(num_classes, widest) if num_classes else None
        self.decoder_classes = nn.Embedding(num_classes, widest) if num_classes else None
        scale = (3 * depth + size.blocks * self.counts.count(0)) ** -0.5
        self.stages = nn.ModuleList()
        before = widest
        for index, grid in enumerate(reversed(grids)):
            here = size.channels(grid)
            enlarge = Enlarge(before, here, grid) if index else None
            self.stages.append(Stage(enlarge, here, self.counts[index], latent_channels, size, scale))
            before = here
        self.head = conv(before, likelihood.outputs)

    def posterior(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, ...]:
        """Features at each grid that has latents, coarsest first."""
        features = self.down.pyramid(2 * images_BCHW - 1)[::-1]
        if self.encoder_classes is not None:
            features[0] = features[0] + self.encoder_classes(labels_B)[:, :, None, None]
        return tuple(map_BCHW for map_BCHW, count in zip(features, self.counts, strict=True) if count)

    def _start(self, labels_B: Tensor) -> Tensor:
        h_BCHW = self.top.expand(labels_B.shape[0], -1, -1, -1)
        if self.decoder_classes is not None:
            h_BCHW = h_BCHW + self.decoder_classes(labels_B)[:, :, None, None]
        return h_BCHW

    def _split(self, values_BZ: Tensor) -> Iterator[Tensor]:
        start = 0
        for group in self.groups:
            end = start + math.prod(group)
            yield values_BZ[:, start:end].reshape(-1, *group)
            start = end

    def _output(self, h_BCHW: Tensor) -> Tensor:
        output_BPHW: Tensor = self.head(functional.silu(h_BCHW))
        return output_BPHW

    def infer(self, posterior: tuple[Tensor, ...], labels_B: Tensor, noise_BZ: Tensor) -> Inferred:
        """Draw each group from its posterior, from the coarsest down; the rates are exact given the groups above."""
        h_BCHW, noises = self._start(labels_B), self._split(noise_BZ)
        groups: list[Drawn] = []
        features = iter(posterior)
        for stage, count in zip(self.stages, self.counts, strict=True):
            h_BCHW, drawn = stage(h_BCHW, next(features) if count else None, noises)
            groups.extend(drawn)
        rates = [kl_to_standard_normal(g.mean_BLHW, g.log_variance_BLHW) for g in groups]
        ratios = [log_ratio_to_standard_normal(g.value_BLHW, g.noise_BLHW, g.log_variance_BLHW) for g in groups]
        means = [g.mean_BLHW.flatten(1) for g in groups]
        return Inferred(self._output(h_BCHW), torch.stack(rates, 1), torch.stack(ratios, 1).sum(1), torch.cat(means, 1))

    def decode(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """The decoder's output (B, P, H, W) for standard normal latents: ancestral sampling from the prior."""
        h_BCHW, noises = self._start(labels_B), self._split(z_BZ)
        for stage in self.stages:
            h_BCHW, _ = stage(h_BCHW, None, noises)
        return self._output(h_BCHW)
