"""`mnist_nll`: the likelihood of MNIST's test images, dynamically binarised, by 1,000 importance samples.

The network of Burda et al. 2016 (IWAE), section 5: one stochastic layer of 50 units, two deterministic ones of 200 with
tanh on either side, trained with the bound of k = 50; each training image is binarised anew every time, the test images
once. The paper trains for 3,280 epochs of batches of 20; how long we do stands in the settings.

`mnist_nll_hierarchy`: the same figure of a hierarchy of latents in the manner of VDVAE (Child 2021), by `depth`.

Shape legend: N test images, C channels, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.bench import mnist
from tests.bench.image_training import Training, train
from tests.bench.table import Bar, Figures, Means, Table
from trainers.bounds import active_units, log_likelihood
from trainers.families import Model, Noise
from trainers.networks.latent import LatentNetwork

IWAE: dict[str, Any] = {
    "network": "mlp",
    "hidden": [200, 200],
    "activation": "tanh",
    "latent_size": 50,
    "likelihood": "bernoulli",
    "binarize": "dynamic",
    "importance_samples": 50,
    "kl_warmup_steps": 0,
    "lr": 1e-3,
}
CHUNK_IMAGES = 100  # scored at once
CURVE_POINTS = 8


@dataclass(frozen=True)
class LikelihoodTable(Table):
    """One training of a VAE; by default IWAE's network with one stochastic layer."""

    training: Training
    title: str = "MNIST, nats a test image, 1,000 importance samples; IWAE's network of one layer, k = 50"
    samples: int = 1000
    test_images: int = 10_000
    curve: tuple[int, int] = (1000, 100)  # images and importance samples of its points
    bars: tuple[Bar, ...] = (Bar("negative_log_likelihood", 84.8, at_least=False),)
    peers: str = "(nats): VAE 86.76; IWAE-50 84.78, two layers 82.90; ladder of 12 layers 78.30; NVAE 78.01"
    default_seeds: int = 1

    def record(self) -> dict[str, Any]:
        return {"training": self.training.record(), "samples": self.samples, "test_images": self.test_images}

    def run(self, seeds: Sequence[int], means: Means) -> list[Figures]:
        digits = mnist.read(means.mnist)
        data = mnist.stored(digits, means.work, "mnist", labelled=False)
        test_NCHW = binarized(digits.test.images_NCHW[: self.test_images]).to(means.device)

        def probe(model: Model, network: nn.Module) -> dict[str, float]:
            images, samples = self.curve
            return {f"nll ({samples} samples)": -mean_log_likelihood(network, test_NCHW[:images], samples)}

        found = []
        for seed in seeds:
            sampler, points = train(self.training, data, seed, means, probe, CURVE_POINTS)
            means.say(f"MNIST: {self.samples:,} importance samples of {len(test_NCHW):,} images")
            nll = -mean_log_likelihood(sampler.network, test_NCHW, self.samples)
            used = num_active(sampler.network, test_NCHW)
            found.append({"negative_log_likelihood": nll, "active_units": used, "curve": points})
        return found

    def quick(self) -> "LikelihoodTable":
        small = {"preset": "tiny"} if "preset" in self.training.options else {}
        training = replace(self.training, steps=8, options={**self.training.options, **small})
        return replace(self, training=training, samples=2, test_images=200, curve=(100, 2))

    def effort(self) -> str:
        training = self.training
        return f"{training.steps:,} steps of {training.batch_size}"


def binarized(images_NCHW: Tensor) -> Tensor:
    """Each pixel black or white, white with its grey value as the probability; the same each time."""
    uniform = torch.rand(images_NCHW.shape, generator=torch.Generator().manual_seed(0))
    return (uniform < images_NCHW.float() / 255).float()


def mean_log_likelihood(network: nn.Module, images_NCHW: Tensor, samples: int) -> float:
    """log p(x) in nats, the mean over images."""
    assert isinstance(network, LatentNetwork)
    total = 0.0
    for number, images_BCHW in enumerate(torch.split(images_NCHW, CHUNK_IMAGES)):
        rows_B = torch.arange(len(images_BCHW), device=images_BCHW.device)
        noise = Noise(0, number, 0, rows_B, len(rows_B))
        total += log_likelihood(network, images_BCHW, torch.zeros_like(rows_B), noise, samples).sum().item()
    return total / len(images_NCHW)


def num_active(network: nn.Module, images_NCHW: Tensor) -> int:
    """Latents that are used (Burda et al. 2016)."""
    assert isinstance(network, LatentNetwork)
    labels_N = torch.zeros(len(images_NCHW), dtype=torch.int64, device=images_NCHW.device)
    return int(active_units(network.posterior_means(images_NCHW, labels_N)).sum())


CPU = LikelihoodTable(Training("vae", 20, 60_000, IWAE, ema_half_life_images=60_000))
FULL = LikelihoodTable(Training("vae", 100, 600_000, IWAE, ema_half_life_images=600_000), default_seeds=3)

HIERARCHY: dict[str, Any] = {"depth": 12, "likelihood": "bernoulli", "binarize": "dynamic", "lr": 1e-3}


HIERARCHY_FULL = LikelihoodTable(
    Training("vae", 100, 300_000, {**HIERARCHY, "preset": "base"}, ema_half_life_images=600_000),
    title="MNIST, nats a test image, 1,000 importance samples; a hierarchy of 12 groups of latents",
    bars=(Bar("negative_log_likelihood", 78.3, at_least=False),),
)
HIERARCHY_CPU = replace(  # an importance sample is a pass through 12 groups: fewer of them, of fewer images
    HIERARCHY_FULL,
    training=Training("vae", 32, 6_000, {**HIERARCHY, "preset": "tiny"}, ema_half_life_images=30_000),
    title="MNIST, nats a test image, 100 importance samples of 1,000 images; a hierarchy of 12 groups of latents",
    samples=100,
    test_images=1000,
    curve=(200, 20),
)
