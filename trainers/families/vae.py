"""The variational autoencoder (Kingma & Welling 2014), conditional where images carry labels.

One network with an encoder q(z|x, y) and a decoder p(x|z, y) (Sohn et al. 2015: both see the class); one phase,
which minimises the negative ELBO, distortion + beta * rate (Higgins et al. 2017; beta 1 is the ELBO).

Shape legend: B images, C channels, H height, W width, Z latent size, F features.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from trainers.families import Adam, Batch, DataShape, FamilyConfig, Model, Networks, Noise, Phase

LOG_2_PI = math.log(2 * math.pi)
MIN_LOG_SCALE = -6.0  # a learned scale may not reach 0: its density would be unbounded (Rybkin et al. 2021)


@dataclass(frozen=True)
class Preset:
    """Sizes of the networks."""

    widths: tuple[int, ...]  # channels after each halving of the image; the last one repeats
    hidden: int  # features of each dense layer
    smallest: int  # images are halved while they stay at least this large


PRESETS = {"tiny": Preset(widths=(16, 32), hidden=512, smallest=4)}


class Config(FamilyConfig):
    """The VAE's fields of a recipe's model section."""

    preset: Literal["tiny"] = "tiny"
    latent_size: Annotated[int, Field(ge=1, le=4096)] = 32
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    scale: Annotated[float, Field(gt=0.0025, le=10.0)] = 0.1  # Gaussian: standard deviation of a pixel
    learn_scale: bool = True  # Gaussian: train the scale, from `scale` on
    beta: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0
    kl_warmup_steps: Annotated[int, Field(ge=0)] = 200
    lr: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-3
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 50
    lr_decay: Literal["none", "cosine"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


def kl_to_standard_normal(mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats, (B,) (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean_BZ**2 + log_variance_BZ.exp() - 1 - log_variance_BZ).sum(1)


def bernoulli_distortion(logits_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """-log p(x|z) in nats, (B,), for pixels in [0, 1].

    Linear in the pixel, so for a grey image this is its mean over images binarised at random with the pixels
    as probabilities (the 'dynamic binarisation' of Burda et al. 2016).
    """
    return functional.binary_cross_entropy_with_logits(logits_BCHW, images_BCHW, reduction="none").flatten(1).sum(1)


def gaussian_distortion(mean_BCHW: Tensor, images_BCHW: Tensor, log_scale: Tensor) -> Tensor:
    """-log N(x; mean, scale^2) in nats, (B,); of a density, so it may be negative (Rybkin et al. 2021)."""
    squared = ((images_BCHW - mean_BCHW) / log_scale.exp()) ** 2
    return (0.5 * (squared + LOG_2_PI) + log_scale).flatten(1).sum(1)


class Dense(nn.Module):
    """Two hidden layers; the class enters the first as an embedding that weighs as much as all other inputs.

    (A one-hot vector beside the inputs was drowned by them: the class then went through z, and half of the
    conditional samples were of another class.)
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.classes = nn.Embedding(num_classes, hidden) if num_classes else None
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs))

    def forward(self, x_BF: Tensor, labels_B: Tensor) -> Tensor:
        """Outputs (B, F')."""
        hidden_BF = self.first(x_BF)
        if self.classes is not None:
            hidden_BF = hidden_BF + self.classes(labels_B)
        outputs_BF: Tensor = self.rest(hidden_BF)
        return outputs_BF


class Vae(nn.Module):
    """Encoder and decoder: strided convolutions at the image's side, dense layers at the latent's."""

    def __init__(self, config: Config, shape: DataShape) -> None:
        super().__init__()
        preset = PRESETS[config.preset]
        self.likelihood = config.likelihood
        widths, grid = [shape.channels], [shape.height, shape.width]
        while min(grid) >= 2 * preset.smallest and not any(side % 2 for side in grid):
            grid = [side // 2 for side in grid]
            widths.append(preset.widths[min(len(widths), len(preset.widths)) - 1])
        self.grid = (widths[-1], *grid)

        self.down = nn.Sequential()
        self.up = nn.Sequential()
        for before, after in itertools.pairwise(widths):
            self.down.extend([nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()])
        for before, after in itertools.pairwise(reversed(widths)):
            self.up.extend([nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)])
        features = math.prod(self.grid)
        self.encoder = Dense(features, preset.hidden, 2 * config.latent_size, shape.num_classes)
        self.decoder = Dense(config.latent_size, preset.hidden, features, shape.num_classes)
        log_scale = torch.full((1,), math.log(config.scale))  # DeepSpeed broadcasts no parameter without a dimension
        if config.likelihood == "gaussian" and config.learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def encode(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z|x, y), (B, Z) each, for images in [0, 1]."""
        features_BF = self.down(2 * images_BCHW - 1).flatten(1)
        mean_BZ, log_variance_BZ = self.encoder(features_BF, labels_B).chunk(2, dim=1)
        return mean_BZ, log_variance_BZ

    def decode(self, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """What parametrises p(x|z, y), (B, C, H, W): logits (Bernoulli) or means (Gaussian)."""
        features_BF = self.decoder(z_BZ, labels_B)
        images_BCHW: Tensor = self.up(features_BF.unflatten(1, self.grid))
        return images_BCHW

    def forward(self, images_BCHW: Tensor, labels_B: Tensor, noise_BZ: Tensor) -> tuple[Tensor, Tensor]:
        """Distortion -log p(x|z, y) and rate KL(q(z|x, y) || p(z)), (B,) each, in nats, at one z of q."""
        mean_BZ, log_variance_BZ = self.encode(images_BCHW, labels_B)
        z_BZ = mean_BZ + (0.5 * log_variance_BZ).exp() * noise_BZ
        decoded_BCHW = self.decode(z_BZ, labels_B)
        if self.likelihood == "bernoulli":
            distortion_B = bernoulli_distortion(decoded_BCHW, images_BCHW)
        else:
            log_scale = self.log_scale.clamp(min=MIN_LOG_SCALE)
            distortion_B = gaussian_distortion(decoded_BCHW, images_BCHW, log_scale)
        return distortion_B, kl_to_standard_normal(mean_BZ, log_variance_BZ)


class VaeModel(Model):
    """One network, one phase."""

    def __init__(self, config: Config, shape: DataShape) -> None:
        self.config = config
        self.networks = {"vae": Vae(config, shape)}
        self.optimizers = {
            "vae": Adam(
                lr=config.lr,
                weight_decay=config.weight_decay,
                warmup_steps=config.lr_warmup_steps,
                decay=config.lr_decay,
            )
        }
        self.phases = [Phase("vae", "vae", self._negative_elbo)]
        self.sampler = "vae"
        self.latent_size = config.latent_size

    def _negative_elbo(
        self, networks: Networks, batch: Batch, noise: Noise, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        noise_BZ = noise.normal(self.latent_size)
        distortion_B, rate_B = networks["vae"](batch.images_BCHW, batch.labels_B, noise_BZ)
        distortion, rate = distortion_B.mean(), rate_B.mean()
        loss = distortion + self.kl_weight(step) * rate
        return loss, {"distortion": distortion.detach(), "rate": rate.detach()}

    def kl_weight(self, step: int) -> float:
        """beta, after a linear warm-up (Sonderby et al. 2016), which keeps latents from dying early."""
        warmup = self.config.kl_warmup_steps
        return self.config.beta * (min(1.0, (step + 1) / warmup) if warmup else 1.0)

    def decode(self, network: nn.Module, z_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """The mean of p(x|z, y)."""
        assert isinstance(network, Vae)
        decoded_BCHW = network.decode(z_BZ, labels_B)
        return decoded_BCHW.sigmoid() if network.likelihood == "bernoulli" else decoded_BCHW.clamp(0, 1)

    def image_figures(
        self, network: nn.Module, images_BCHW: Tensor, labels_B: Tensor, noise: Noise
    ) -> dict[str, Tensor]:
        """Negative ELBO (beta 1, whatever the training's was), rate and distortion, in nats, (B,) each."""
        distortion_B, rate_B = network(images_BCHW, labels_B, noise.normal(self.latent_size))
        return {"negative_elbo": distortion_B + rate_B, "rate": rate_B, "distortion": distortion_B}


def build(config: Config, shape: DataShape) -> Model:
    """Make the VAE for images of `shape`."""
    return VaeModel(config, shape)
