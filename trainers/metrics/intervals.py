"""How sure a figure is: 95% intervals by resampling the images.

`mean` and `ratio_of_means` bootstrap values that each image has by itself. Figures of two whole sets come from
`subsampled`: k-nearest-neighbour figures and unbiased estimators must not meet a row twice (its distance to itself is
0), so their intervals come from parts drawn without replacement, never from a bootstrap with replacement. All of them
are about the images, not about the training: another seed of the training moves a figure further.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.metrics.checks import check_rows, finite

CONFIDENCE = 0.95
NUM_RESAMPLES = 1_000  # of values an image has by itself ...
RESAMPLED_VALUES = 20_000_000  # ... or as many as make so many values in all, 100 or more
NUM_PARTS = 200  # of whole sets


@dataclass(frozen=True)
class Estimate:
    """A figure with the bounds of its interval."""

    value: float
    low: float
    high: float


def mean(values_N: Tensor, seed: int, *, num_resamples: int | None = None) -> Estimate:
    """The mean of per-image values (N,), 2 or more, with its percentile bootstrap interval.

    It has no width where all values are equal: read a share of exactly 0 or 1 with the number of images in mind.
    """
    values_N = finite("values", values_N.reshape(-1, 1), rows=2).flatten().cpu()
    num_resamples = num_resamples or _resamples(len(values_N))
    means_R = _resampled_means(values_N, torch.Generator().manual_seed(seed), num_resamples)
    return Estimate(float(values_N.mean()), *tails(means_R))


def ratio_of_means(above_M: Tensor, below_N: Tensor, seed: int, *, num_resamples: int | None = None) -> Estimate:
    """mean(above) / mean(below) of two independent sets of per-image values, with its percentile bootstrap interval.

    Both sets are resampled. Infinite where the mean below is 0.
    """
    above_M = finite("values", above_M.reshape(-1, 1), rows=2).flatten().cpu()
    below_N = finite("values", below_N.reshape(-1, 1), rows=2).flatten().cpu()
    num_resamples = num_resamples or _resamples(max(len(above_M), len(below_N)))
    random = torch.Generator().manual_seed(seed)
    above_R, below_R = (_resampled_means(values, random, num_resamples) for values in (above_M, below_N))
    return Estimate(float(above_M.mean() / below_N.mean()), *tails(above_R / below_R))


def subsampled(
    statistics: Callable[[Tensor, Tensor], Sequence[float]],
    real: Tensor,
    fake: Tensor,
    seed: int,
    *,
    most_rows: int | None = None,
    num_parts: int = NUM_PARTS,
) -> list[Estimate]:
    """Estimates of `statistics(real, fake)` from parts of both sets, drawn without replacement.

    A part is half of each set, or less where half of the larger one is more than `most_rows`. The spread of a statistic
    over parts of a share f of the images, given all of them, times (f / (1 - f))^(1/2), is that of the whole sample's
    statistic where it is smooth, and wider, so on the safe side, where it is degenerate (a distance of two equal
    distributions): Politis & Romano 1994 with the finite-population correction; at f = 1/2 the factor is 1. Only the
    spread is taken: centring removes what a part has more of a bias such as the Frechet distance's. The interval is for
    the figure at this number of images, its bias included. Rows are dim 0, 4 or more of each.
    """
    check_rows("real", len(real), 4)
    check_rows("fake", len(fake), 4)
    share = min(0.5, (most_rows or len(real) + len(fake)) / max(len(real), len(fake)))
    random = torch.Generator().manual_seed(seed)
    parts = [
        statistics(real[_part(len(real), share, random)], fake[_part(len(fake), share, random)])
        for _ in range(num_parts)
    ]
    parts_RS = torch.tensor(parts, dtype=torch.float64)
    factor = (share / (1 - share)) ** 0.5
    return [
        around(value, factor * (parts_R - parts_R.mean()))
        for value, parts_R in zip(statistics(real, fake), parts_RS.T, strict=True)
    ]


def around(value: float, offsets_R: Tensor) -> Estimate:
    """The interval about a whole sample's value, from offsets of resamples about their own centre."""
    low, high = tails(offsets_R.cpu())
    return Estimate(value, value + low, value + high)


def _resampled_means(values_N: Tensor, random: torch.Generator, num_resamples: int) -> Tensor:
    num = len(values_N)
    means = [values_N[torch.randint(num, (num,), generator=random)].mean() for _ in range(num_resamples)]
    return torch.stack(means)


def _resamples(num_values: int) -> int:
    return min(NUM_RESAMPLES, max(100, RESAMPLED_VALUES // num_values))


def _part(num_rows: int, share: float, random: torch.Generator) -> Tensor:
    return torch.randperm(num_rows, generator=random)[: max(2, int(num_rows * share))]


def tails(values_R: Tensor) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = values_R.double().quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
