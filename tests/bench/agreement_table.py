"""`mnist_agreement`: are conditional samples read as the class that was asked for, and how far are they from MNIST?

10,000 samples, each class as often, read by a classifier that reads the test images at 99% or better; the Frechet
distance of its 64 features between samples and the 10,000 test images, as a multiple of the floor: that of 10,000
training images.

Shape legend: N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pipeline.errors import TrainingError
from tests.bench import mnist
from tests.bench.image_training import Training, train
from tests.bench.mnist import Digits
from tests.bench.reading import class_reader, generated
from tests.bench.table import Bar, Figures, Means, Table
from trainers.extractors.own import Extractor
from trainers.families import Model
from trainers.metrics.classes import label_agreement
from trainers.metrics.frechet import frechet_distance

LEAST_ACCURACY = 0.99  # of the classifier: else its readings say nothing of the samples
CURVE_POINTS = 4
CURVE_SAMPLES = 1000


@dataclass(frozen=True)
class AgreementTable(Table):
    """A GAN and a VAE, each conditional."""

    trainings: dict[str, Training]  # by model
    bars: tuple[Bar, ...]
    title: str = "MNIST, 10,000 conditional samples read as their class; Frechet distance as a multiple of its floor"
    samples: int = 10_000
    least_accuracy: float = LEAST_ACCURACY
    peers: str = "publish no such figures: the floor is training images against test images"
    default_seeds: int = 1

    def record(self) -> dict[str, Any]:
        return {"trainings": {name: one.record() for name, one in self.trainings.items()}, "samples": self.samples}

    def run(self, seeds: Sequence[int], means: Means) -> list[Figures]:
        digits = mnist.read(means.mnist)
        reader = class_reader(digits, means)
        accuracy = reader.record.test_accuracy or 0.0
        if accuracy < self.least_accuracy:
            raise TrainingError(
                f"mnist_agreement: expected a classifier of {self.least_accuracy:.0%}, got {accuracy:.2%}"
            )
        data = mnist.stored(digits, means.work, "mnist-classes", labelled=True)
        return [{**self._of_seed(seed, digits, reader, data, means), "accuracy": accuracy} for seed in seeds]

    def _of_seed(self, seed: int, digits: Digits, reader: Extractor, data: mnist.Stored, means: Means) -> Figures:
        test_ND = reader.features(digits.test.images_NCHW[: self.samples])
        floor = frechet_distance(test_ND, reader.features(digits.train.images_NCHW[: self.samples]))
        found: Figures = {"frechet_floor": floor}
        for name, training in self.trainings.items():

            def probe(model: Model, network: nn.Module) -> dict[str, float]:
                return {"agreement": agreement(model, network, min(CURVE_SAMPLES, self.samples), reader, means)[0]}

            sampler, points = train(training, data, seed, means, probe, CURVE_POINTS)
            agrees, made_NCHW = agreement(sampler.model, sampler.network, self.samples, reader, means)
            distance = frechet_distance(test_ND, reader.features(made_NCHW))
            found |= {f"{name}_agreement": agrees, f"{name}_frechet_over_floor": distance / floor}
            found["curve"] = [*found.get("curve", []), *({"model": name, **point} for point in points)]
        return found

    def quick(self) -> "AgreementTable":
        trainings = {
            name: replace(one, steps=2, batch_size=8, options={**one.options, "preset": "tiny"})
            for name, one in self.trainings.items()
        }
        return replace(self, trainings=trainings, samples=300, least_accuracy=0.0)

    def effort(self) -> str:
        each = [f"{name} {one.steps:,} steps of {one.batch_size}" for name, one in self.trainings.items()]
        return ", ".join(each)


def agreement(
    model: Model, network: nn.Module, count: int, reader: Extractor, means: Means
) -> tuple[float, torch.Tensor]:
    """The share of samples that are read as their class, and the samples (N, 1, H, W)."""
    made_NCHW = generated(model, network, count, len(mnist.CLASSES), means)
    wanted_N = torch.arange(count) % len(mnist.CLASSES)
    return label_agreement(reader.predict(made_NCHW), wanted_N).mean().item(), made_NCHW


VAE = Training("vae", 128, 4000, {"preset": "tiny", "likelihood": "bernoulli"}, ema_half_life_images=50_000)
GAN = Training("gan", 64, 2500, {"preset": "tiny", "loss": "relativistic"}, ema_half_life_images=100_000)
CPU = AgreementTable(
    {"gan": GAN, "vae": VAE},
    (Bar("gan_agreement", 0.90, at_least=True), Bar("vae_agreement", 0.90, at_least=True)),
)
FULL = AgreementTable(
    {
        "gan": replace(
            GAN,
            batch_size=256,
            steps=40_000,
            options={"preset": "base", "loss": "relativistic", "lr": 2e-4},
            ema_half_life_images=500_000,
        ),
        "vae": replace(VAE, steps=60_000, options={**VAE.options, "preset": "base"}),
    },
    (
        Bar("gan_agreement", 0.98, at_least=True),
        Bar("vae_agreement", 0.95, at_least=True),
        Bar("gan_frechet_over_floor", 3.0, at_least=False),
        Bar("vae_frechet_over_floor", 3.0, at_least=False),
    ),
    default_seeds=3,
)
