"""`stacked_mnist`: how many of the 1,000 numbers of three stacked digits a GAN makes (Metz et al. 2017).

128,000 training images of three random digits, one a channel; 26,000 generated ones, whose channels a classifier of
MNIST reads. Modes are numbers that were made at all; the divergence is that of their histogram from the true one, in
nats. A perfect sampler scores 1,000 and 999 / (2 * 26,000) = 0.019.

Shape legend: N images, H height, W width, K = 1,000 numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.bench import mnist
from tests.bench.image_training import Training, train
from tests.bench.reading import class_reader, generated
from tests.bench.table import Bar, Figures, Means, Table
from trainers.extractors.own import Extractor
from trainers.families import Model

NUMBERS = 1000
CURVE_POINTS = 6
CURVE_SAMPLES = 5000


@dataclass(frozen=True)
class StackedTable(Table):
    """The GAN on stacked digits."""

    training: Training
    title: str = "Stacked MNIST, 26,000 samples read by a classifier a channel"
    training_images: int = 128_000
    samples: int = 26_000
    bars: tuple[Bar, ...] = (
        Bar("modes", NUMBERS, at_least=True, every_seed=True),
        Bar("reverse_kl", 0.029, at_least=False),
    )
    peers: str = "(modes, reverse KL): VEEGAN 150, 2.95; PacGAN 1000, 0.06; R3GAN 1000, 0.029; perfect sampler 0.019"
    default_seeds: int = 1

    def record(self) -> dict[str, Any]:
        sizes = {"training_images": self.training_images, "samples": self.samples}
        return {"training": self.training.record(), **sizes}

    def run(self, seeds: Sequence[int], means: Means) -> list[Figures]:
        digits = mnist.read(means.mnist)
        reader = class_reader(digits, means)
        shown = mnist.stacked(digits.train, self.training_images, seed=0)
        data = mnist.stored(mnist.Digits(shown, mnist.stacked(digits.test, 100, seed=1)), means.work, "stacked", False)
        true_K = number_shares(digits.train.labels_N)

        def score(model: Model, network: nn.Module, count: int) -> dict[str, float]:
            numbers_N = read_numbers(generated(model, network, count, 0, means), reader)
            return scores(numbers_N, true_K)

        def probe(model: Model, network: nn.Module) -> dict[str, float]:
            return score(model, network, min(CURVE_SAMPLES, self.samples))

        found: list[Figures] = []
        for seed in seeds:
            sampler, points = train(self.training, data, seed, means, probe, CURVE_POINTS)
            found.append({**score(sampler.model, sampler.network, self.samples), "curve": points})
        return found

    def quick(self) -> "StackedTable":
        training = replace(self.training, steps=2, batch_size=8, options={**self.training.options, "preset": "tiny"})
        return replace(self, training=training, training_images=400, samples=300)

    def effort(self) -> str:
        training = self.training
        return f"{training.options['preset']}, {training.steps:,} steps of {training.batch_size}"


def number_shares(labels_N: Tensor) -> Tensor:
    """How often each number comes where three digits are drawn independently, (K,)."""
    share = torch.bincount(labels_N, minlength=10).double() / len(labels_N)
    return torch.einsum("a,b,c->abc", share, share, share).flatten()


def read_numbers(images_N3HW: Tensor, reader: Extractor) -> Tensor:
    """The number of each image, (N,)."""
    hundreds_N, tens_N, ones_N = (reader.predict(images_N3HW[:, i : i + 1]) for i in range(3))
    return 100 * hundreds_N + 10 * tens_N + ones_N


def scores(numbers_N: Tensor, true_K: Tensor) -> dict[str, float]:
    """Numbers that were made, and the divergence of their histogram from the true shares in nats."""
    share_K = torch.bincount(numbers_N, minlength=len(true_K)).double() / len(numbers_N)
    made_K = share_K > 0
    divergence = (share_K[made_K] * (share_K[made_K] / true_K[made_K]).log()).sum()
    return {"modes": int(made_K.sum()), "reverse_kl": divergence.item()}


# R3GAN's recipe for this table (Huang et al. 2024, appendix): 10 million images, batches of 512, gamma from 1 to 0.1.
R3GAN: dict[str, Any] = {
    "preset": "base",
    "loss": "relativistic",
    "r1_gamma": 1.0,
    "r2_gamma": 1.0,
    "gamma_decay": 0.1,
    "gamma_decay_steps": 20_000,
    "lr": 2e-4,
    "beta2": 0.99,
}
FULL = StackedTable(Training("gan", 512, 20_000, R3GAN, ema_half_life_images=500_000), default_seeds=3)
CPU = StackedTable(
    Training(
        "gan",
        96,
        20_000,
        {**R3GAN, "preset": "tiny", "lr": 1e-3},
        ema_half_life_images=100_000,
    )
)
