"""The variational autoencoder (Kingma & Welling 2014), conditional where images carry labels.

One network with an encoder q(z|x, y) and a decoder p(x|z, y) (Sohn et al. 2015: both see the class); one phase,
which minimises the negative ELBO, distortion + beta * rate (Higgins et al. 2017; beta 1 is the ELBO), or, with
`importance_samples`, the tighter bound of Burda et al. 2016. With `depth` above 1 the latents are a hierarchy.

Parameters in millions for 10 classes and the Bernoulli likelihood, at depth 1 with 32 latents, and at depth 6 with 16
latent channels a group (a test holds some of them):

    preset   8x8x1         28x28x1       32x32x3       64x64x3       256x256x3
    tiny     0.85   2.09   2.21   1.62   1.16   1.62   1.19   1.57   1.26   1.01
    base     4.69   9.19   6.41   9.73   6.41   9.73   6.50   8.77   6.67   6.61
    large    46.1   90.2   56.2   76.9   56.2   76.9   56.7   72.9   57.7   52.4

Shape legend: B images, K draws of the latents an image, C channels, H height, W width, P channels of the decoder's
output, Z latent size, G latent groups, F features.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainers.alarms import Alarm, posterior_collapsed
from trainers.bounds import importance_bound, log_likelihood, rate_beyond_free_bits
from trainers.families import Adam, Batch, DataShape, FamilyConfig, Model, Networks, Noise, Observes, Phase
from trainers.likelihoods import Bernoulli, Gaussian, Likelihood, LogisticMixture
from trainers.networks.blocks import BottomUp, ConditionalMlp, TopDown, TowerSize, pyramid
from trainers.networks.ladder import Ladder
from trainers.networks.latent import (
    Inferred,
    LatentNetwork,
    Terms,
    kl_to_standard_normal,
    log_ratio_to_standard_normal,
)


@dataclass(frozen=True)
class Preset:
    """Sizes of the preset `tiny`: plain strided convolutions, made for CPUs."""

    widths: tuple[int, ...]  # channels after each halving of the image; the last one repeats
    hidden: int  # features of each dense layer
    smallest: int  # images are halved while they stay at least this large


TINY = Preset(widths=(16, 32), hidden=512, smallest=4)
TOWERS = {  # residual towers; `tiny` has one where `depth` asks for a hierarchy
    "tiny": TowerSize(budget=512, least=16, most=64, blocks=1, hidden=256),
    "base": TowerSize(budget=2048, least=32, most=128, blocks=2, hidden=512),
    "large": TowerSize(budget=4096, least=64, most=384, blocks=3, hidden=1024),
}


class Config(FamilyConfig):
    """The VAE's fields of a recipe's model section."""

    network: Literal["conv", "mlp"] = "conv"
    preset: Literal["tiny", "base", "large"] = "tiny"  # sizes of `conv` networks
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(max_length=16)] = (200, 200)  # of `mlp`
    activation: Literal["silu", "tanh", "relu"] = "tanh"  # of `mlp`
    depth: Annotated[int, Field(ge=1, le=64)] = 1  # groups of latents; above 1 a hierarchy of feature maps
    latent_size: Annotated[int, Field(ge=1, le=4096)] = 32  # at depth 1
    latent_channels: Annotated[int, Field(ge=1, le=512)] = 16  # of each group, at depth 2 and more
    likelihood: Literal["bernoulli", "gaussian", "logistic_mixture"] = "bernoulli"
    binarize: Literal["none", "dynamic"] = "none"  # Bernoulli: draw black and white images anew each time
    scale: Annotated[float, Field(gt=0.0025, le=10.0)] = 0.1  # Gaussian: standard deviation of a pixel
    learn_scale: bool = True  # Gaussian: train the scale, from `scale` on
    scale_per_pixel: bool = False  # Gaussian: the decoder also gives each pixel a factor of the scale
    mixture_components: Annotated[int, Field(ge=1, le=100)] = 10  # logistic mixture
    decode: Literal["mean", "draw"] = "mean"  # what a sample shows: the mean of p(x|z) or a draw from it
    beta: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0
    kl_warmup_steps: Annotated[int, Field(ge=0)] = 200
    free_bits: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.0  # nats of each latent group that cost nothing
    importance_samples: Annotated[int, Field(ge=1, le=1000)] = 1  # k of the bound that is trained
    lr: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-3
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 50
    lr_decay: Literal["none", "cosine"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        """A field that would be ignored is refused, with the setting that it belongs to."""
        needs = {
            "hidden": (self.network == "mlp", "network: mlp"),
            "activation": (self.network == "mlp", "network: mlp"),
            "latent_size": (self.depth == 1, "depth: 1 (set latent_channels)"),
            "latent_channels": (self.depth > 1, "depth: 2 or more (set latent_size)"),
            "scale_per_pixel": (self.likelihood == "gaussian", "likelihood: gaussian"),
            "mixture_components": (self.likelihood == "logistic_mixture", "likelihood: logistic_mixture"),
        }
        for field, (fits, setting) in needs.items():
            if field in self.model_fields_set and not fits:
                raise ValueError(f"{field} is used with {setting} only")
        if self.binarize == "dynamic" and self.likelihood != "bernoulli":
            raise ValueError("binarize: dynamic needs likelihood: bernoulli")
        if self.depth > 1 and self.network != "conv":
            raise ValueError("depth above 1 needs network: conv")
        if self.importance_samples > 1 and self.free_bits:
            raise ValueError("free_bits belong to the ELBO: set importance_samples: 1, or free_bits: 0")
        return self


def likelihood_of(config: Config, channels: int) -> Likelihood:
    """The likelihood that the config names."""
    if config.likelihood == "bernoulli":
        return Bernoulli(channels)
    if config.likelihood == "gaussian":
        return Gaussian(channels, config.scale_per_pixel)
    return LogisticMixture(channels, config.mixture_components)


def set_scale(network: LatentNetwork, config: Config) -> None:
    """Give the network its scale: a parameter where it is learned, else a buffer."""
    log_scale = torch.full((1,), math.log(config.scale))  # DeepSpeed broadcasts no parameter without a dimension
    if config.likelihood == "gaussian" and config.learn_scale:
        network.log_scale = nn.Parameter(log_scale)
    else:
        network.register_buffer("log_scale", log_scale)


@dataclass(frozen=True)
class Sides:
    """The parts of a network at the image's side, and the shapes (C, H, W) that lie between them and dense layers."""

    down: nn.Module
    up: nn.Module
    encoded: tuple[int, int, int]  # what `down` gives
    decoded: tuple[int, int, int]  # what `up` takes
    hidden: tuple[int, ...]  # features of the encoder's dense layers; the decoder has them the other way round
    activation: str


def tiny_sides(shape: DataShape, outputs: int) -> Sides:
    """Plain strided convolutions while both sides are even."""
    widths, grid = [shape.channels], [shape.height, shape.width]
    while min(grid) >= 2 * TINY.smallest and not any(side % 2 for side in grid):
        grid = [side // 2 for side in grid]
        widths.append(TINY.widths[min(len(widths), len(TINY.widths)) - 1])
    down, up = nn.Sequential(), nn.Sequential()
    for before, after in itertools.pairwise(widths):
        down.extend([nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()])
    up_widths = [*reversed(widths[1:]), outputs]
    for before, after in itertools.pairwise(up_widths):
        up.extend([nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)])
    height, width = grid
    hidden = (TINY.hidden, TINY.hidden)
    return Sides(down, up, (widths[-1], height, width), (up_widths[0], height, width), hidden, "silu")


def residual_sides(size: TowerSize, shape: DataShape, outputs: int) -> Sides:
    """Residual towers over the pyramid of grids."""
    grids = pyramid(shape.height, shape.width, size.smallest)
    inner = (size.channels(grids[-1]), *grids[-1])
    down, up = BottomUp(shape.channels, grids, size), TopDown(outputs, grids, size)
    return Sides(down, up, inner, inner, (size.hidden,), "silu")


def dense_sides(config: Config, shape: DataShape, outputs: int) -> Sides:
    """No convolutions at all, as in the papers' tables for small images."""
    image, output = (shape.channels, shape.height, shape.width), (outputs, shape.height, shape.width)
    return Sides(nn.Sequential(), nn.Sequential(), image, output, config.hidden, config.activation)


class Vae(LatentNetwork):
    """One latent vector: convolutions at the image's side, dense layers at the latent's."""

    def __init__(self, config: Config, shape: DataShape) -> None:
        super().__init__()
        self.latent_size = config.latent_size
        self.likelihood = likelihood_of(config, shape.channels)
        outputs = self.likelihood.outputs
        if config.network == "mlp":
            sides = dense_sides(config, shape, outputs)
        elif config.preset == "tiny":
            sides = tiny_sides(shape, outputs)
        else:
            sides = residual_sides(TOWERS[config.preset], shape, outputs)
        # Dense layers learn faster from [0, 1]: MNIST's black at -1 drives tanh units far out (negative ELBO 117.1
        # after 8 epochs against 120.3 after 12).
        self.centre = config.network == "conv"
        self.grid = sides.decoded
        self.down, self.up = sides.down, sides.up
        classes, activation = shape.num_classes, sides.activation
        inner, features = math.prod(sides.encoded), math.prod(sides.decoded)
        self.encoder = ConditionalMlp(inner, sides.hidden, 2 * config.latent_size, classes, activation)
        self.decoder = ConditionalMlp(config.latent_size, sides.hidden[::-1], features, classes, activation)
        set_scale(self, config)

    def encode(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x, y), (B, Z) each, for images in [0, 1]."""
        centred_BCHW = 2 * images_BCHW - 1 if self.centre else images_BCHW
        features_BF = self.down(centred_BCHW).flatten(1)
        mean_BZ, log_variance_BZ = self.encoder(features_BF, labels_B).chunk(2, dim=1)
        return mean_BZ, log_variance_BZ

    def posterior(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, ...]:
        return self.encode(images_BCHW, labels_B)

    def infer(self, posterior: tuple[Tensor, ...], labels_B: Tensor, noise_BZ: Tensor) -> Inferred:
        mean_BZ, log_variance_BZ = posterior
        z_BZ = mean_BZ + (0.5 * log_variance_BZ).exp() * noise_BZ
        return Inferred(
            self.decode(z_BZ, labels_B),
            kl_to_standard_normal(mean_BZ, log_variance_BZ)[:, None],
            log_ratio_to_standard_normal(z_BZ, noise_BZ, log_variance_BZ),
            mean_BZ,
        )

    def decode(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """What parametrises p(x|z, y), (B, P, H, W): logits (Bernoulli), means (Gaussian) ..."""
        features_BF = self.decoder(z_BZ, labels_B)
        output_BPHW: Tensor = self.up(features_BF.view(-1, *self.grid))
        return output_BPHW


def network_of(config: Config, shape: DataShape) -> LatentNetwork:
    """The network that the config names."""
    if config.depth == 1:
        return Vae(config, shape)
    ladder = Ladder(
        shape.channels,
        shape.height,
        shape.width,
        shape.num_classes,
        depth=config.depth,
        latent_channels=config.latent_channels,
        size=TOWERS[config.preset],
        likelihood=likelihood_of(config, shape.channels),
    )
    set_scale(ladder, config)
    return ladder


class VaeModel(Model):
    """One network, one phase."""

    def __init__(self, config: Config, shape: DataShape) -> None:
        self.config = config
        self.shape = shape
        network = network_of(config, shape)
        self.networks = {"vae": network}
        self.optimizers = {
            "vae": Adam(
                lr=config.lr,
                weight_decay=config.weight_decay,
                warmup_steps=config.lr_warmup_steps,
                decay=config.lr_decay,
                clip_norm=config.clip_norm,
            )
        }
        self.phases = [Phase("vae", "vae", self._loss)]
        self.sampler = "vae"
        # A drawn image takes its pixels' noise from the end of the latent, so that its seed still says all of it.
        self.pixel_noise = (network.likelihood.noise_channels if config.decode == "draw" else 0, *self._grid)
        self.latent_size = network.latent_size + math.prod(self.pixel_noise)

    @property
    def _grid(self) -> tuple[int, int]:
        return self.shape.height, self.shape.width

    def _observed(self, images_BCHW: Tensor, noise: Noise) -> Tensor:
        """The images that the likelihood is asked for: black and white at random with `binarize: dynamic`."""
        if self.config.binarize == "none":
            return images_BCHW
        return (noise.uniform(*images_BCHW.shape[1:]) < images_BCHW).to(images_BCHW.dtype)

    def _loss(self, networks: Networks, batch: Batch, noise: Noise, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        network = networks["vae"]
        assert isinstance(network, LatentNetwork)
        images_BCHW = self._observed(batch.images_BCHW, noise)
        noise_BKZ = noise.normal(self.config.importance_samples, network.latent_size)
        terms: Terms = network(images_BCHW, batch.labels_B, noise_BKZ)
        distortion, rate = terms.distortion_BK.mean(), terms.rate_BKG.sum(2).mean()
        weight = self.kl_weight(step)
        if self.config.importance_samples > 1:
            loss = -importance_bound(terms.log_weights(weight)).mean()
        else:
            loss = distortion + weight * rate_beyond_free_bits(terms.rate_BKG[:, 0], self.config.free_bits).mean()
        return loss, {"distortion": distortion.detach(), "rate": rate.detach()}

    def kl_weight(self, step: int) -> float:
        """beta, after a linear warm-up (Sonderby et al. 2016), which keeps latents from dying early."""
        warmup = self.config.kl_warmup_steps
        return self.config.beta * (min(1.0, (step + 1) / warmup) if warmup else 1.0)

    def decode(self, network: nn.Module, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """The mean of p(x|z, y), or with `decode: draw` a draw from it."""
        assert isinstance(network, LatentNetwork)
        output_BPHW = network.decode(z_BZ[:, : network.latent_size], labels_B)
        if self.config.decode == "mean":
            return network.likelihood.mean(output_BPHW)
        normal_BNHW = z_BZ[:, network.latent_size :].reshape(-1, *self.pixel_noise)
        return network.likelihood.draw(output_BPHW, normal_BNHW, network.log_scale)

    def image_figures(
        self, network: nn.Module, images_BCHW: Tensor, labels_B: Tensor, noise: Noise
    ) -> dict[str, Tensor]:
        """Negative ELBO (beta 1, no free bits, whatever the training's was), rate and distortion in nats, (B,) each."""
        assert isinstance(network, LatentNetwork)
        observed_BCHW = self._observed(images_BCHW, noise)
        terms: Terms = network(observed_BCHW, labels_B, noise.normal(1, network.latent_size))
        distortion_B, rate_B = terms.distortion_BK[:, 0], terms.rate_BKG.sum(2)[:, 0]
        return {"negative_elbo": distortion_B + rate_B, "rate": rate_B, "distortion": distortion_B}

    def log_likelihood(
        self, network: nn.Module, images_BCHW: Tensor, labels_B: Tensor, noise: Noise, num_draws: int
    ) -> Tensor:
        """log p(x|y) in nats from below, (B,) float64, by `num_draws` importance samples (Burda et al. 2016)."""
        assert isinstance(network, LatentNetwork)
        return log_likelihood(network, self._observed(images_BCHW, noise), labels_B, noise, num_draws)

    def posterior_means(self, network: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Means of q(z|x, y), (B, Z)."""
        assert isinstance(network, LatentNetwork)
        return network.posterior_means(images_BCHW, labels_B)

    @property
    def observes(self) -> Observes:
        """What the likelihood is of."""
        network = self.networks["vae"]
        assert isinstance(network, LatentNetwork)
        return network.likelihood.observes

    def alarms(self) -> Sequence[Alarm]:
        advice = "lower beta, raise kl_warmup_steps, or set free_bits"
        return [posterior_collapsed("vae", self.config.kl_warmup_steps, advice)]


def build(config: Config, shape: DataShape) -> Model:
    """Make the VAE for images of `shape`."""
    return VaeModel(config, shape)
