"""Intervals cover as often as they say, and depend on their seed only."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.trainers.metrics.sets import normal, two_sets
from trainers.metrics import kernel, neighbours
from trainers.metrics.intervals import Estimate, mean, ratio_of_means, subsampled


def covered(found: list[Estimate], truth: float) -> float:
    return sum(one.low <= truth <= one.high for one in found) / len(found)


def test_the_bootstrap_covers_a_mean_as_often_as_it_says() -> None:
    values = torch.randn(300, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    found = [mean(row, seed=i, num_resamples=300) for i, row in enumerate(values)]
    assert 0.87 <= covered(found, float(np.exp(0.5))) <= 0.98


def test_the_bootstrap_covers_a_ratio_as_often_as_it_says() -> None:
    found = []
    for seed in range(300):
        above, below = normal(90, 1, 2 * seed) + 3, normal(60, 1, 2 * seed + 1) + 2
        found.append(ratio_of_means(above, below, seed, num_resamples=200))
    assert 0.90 <= covered(found, 1.5) <= 0.98


def difference(real: Tensor, fake: Tensor) -> list[float]:
    return [float(fake.mean() - real.mean()), 0.0]


def test_parts_cover_a_difference_of_means_as_often_as_they_say() -> None:
    for most_rows in (None, 20):  # halves, and parts of a fifth of the images
        found = [
            subsampled(
                difference, normal(60, 1, 2 * i), normal(90, 1, 2 * i + 1) + 0.5, i, most_rows=most_rows, num_parts=100
            )[0]
            for i in range(300)
        ]
        assert 0.89 <= covered(found, 0.5) <= 0.98


def test_intervals_depend_on_their_seed_only() -> None:
    real, fake = two_sets(40)
    estimates: list[Callable[[int], object]] = [
        lambda seed: mean(real[:, 0], seed),
        lambda seed: ratio_of_means(fake[:, 0].exp(), real[:, 0].exp(), seed),
        lambda seed: subsampled(difference, real, fake, seed, num_parts=50),
        lambda seed: kernel.estimate(real, fake, seed, num_parts=50),
        lambda seed: neighbours.estimates(real, fake, seed, num_parts=50),
    ]
    for estimate in estimates:
        first = estimate(0)
        torch.randn(3)  # moves the global generator
        assert estimate(0) == first != estimate(1)
