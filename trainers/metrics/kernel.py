"""The kernel distance: unbiased squared maximum mean discrepancy under a cubic kernel (Binkowski et al. 2018, KID)."""

import torch
from torch import Tensor

from trainers.metrics.checks import pair
from trainers.metrics.distances import blocks
from trainers.metrics.intervals import NUM_PARTS, Estimate, around

SINGLE_FROM = 10**10  # products of two numbers: with fewer, all are in float64
SINGLE_SCALE = 1e3  # most that the kernel may be for float32


def kernel_distance(real_ND: Tensor, fake_MD: Tensor) -> float:
    """The distance under k(x, y) = (x.y / D + 1)^3.

    All pairs are used: no subsets. Being unbiased it may be slightly below 0 for equal distributions. Needs 2 rows of
    each.

    Large sets are multiplied in float32 and summed in float64, in two thirds of the time: roundings of millions of
    pairs average out, to 1e-10 of the kernel (measured: 2e-6 of a distance of 3e-5).
    """
    real_ND, fake_MD = pair(real_ND, fake_MD, rows=2)
    every = real_ND.new_ones(1, len(real_ND)), real_ND.new_ones(1, len(fake_MD))
    return float(_distances(real_ND, fake_MD, *every)[0])


def estimate(real_ND: Tensor, fake_MD: Tensor, seed: int, *, num_parts: int = NUM_PARTS) -> Estimate:
    """The distance with the interval of `intervals.subsampled`, all halves in one pass. Needs 4 rows of each."""
    real_ND, fake_MD = pair(real_ND, fake_MD, rows=4)
    random = torch.Generator().manual_seed(seed)
    real_RN, fake_RM = (real_ND.new_zeros(1 + num_parts, len(x)) for x in (real_ND, fake_MD))
    real_RN[0], fake_RM[0] = 1, 1
    for part in range(1, 1 + num_parts):
        real_RN[part, _half(len(real_ND), random)] = 1
        fake_RM[part, _half(len(fake_MD), random)] = 1
    found_R = _distances(real_ND, fake_MD, real_RN, fake_RM)
    return around(float(found_R[0]), found_R[1:] - found_R[1:].mean())


def _distances(real_ND: Tensor, fake_MD: Tensor, real_RN: Tensor, fake_RM: Tensor) -> Tensor:
    """The kernel distance of each of R pairs of subsets, (R,); a subset is a row of zeros and ones."""
    if len(real_ND) * len(fake_MD) * real_ND.shape[1] >= SINGLE_FROM and _scale(real_ND, fake_MD) <= SINGLE_SCALE:
        real_ND, fake_MD = real_ND.float(), fake_MD.float()
    cross_R = _kernel_sums(real_ND, fake_MD, real_RN, fake_RM)
    num_real_R, num_fake_R = real_RN.sum(1), fake_RM.sum(1)
    return _mean_within(real_ND, real_RN) + _mean_within(fake_MD, fake_RM) - 2 * cross_R / (num_real_R * num_fake_R)


def _mean_within(x_ND: Tensor, subset_RN: Tensor) -> Tensor:
    """The mean kernel over the pairs of two different rows in each subset, (R,)."""
    itself_N: Tensor = (x_ND.double().square().sum(1) / x_ND.shape[1] + 1) ** 3
    num_R = subset_RN.sum(1)
    sums_R = subset_RN.new_zeros(len(subset_RN))
    for rows in blocks(len(x_ND), len(x_ND)):
        # Each pair once: a block against itself, and against the rows after it, which count twice.
        within_RB, after_RM = subset_RN[:, rows], subset_RN[:, rows.stop :]
        kernel_BM = _kernel(x_ND[rows], x_ND[rows.start :])
        height = rows.stop - rows.start
        sums_R += ((within_RB @ kernel_BM[:, :height]) * within_RB).sum(1)
        sums_R += 2 * ((within_RB @ kernel_BM[:, height:]) * after_RM).sum(1)
    return (sums_R - subset_RN @ itself_N) / (num_R * (num_R - 1))


def _kernel_sums(x_ND: Tensor, y_MD: Tensor, x_RN: Tensor, y_RM: Tensor) -> Tensor:
    """The sum of the kernel over all pairs of each subset of x with the same one of y, (R,)."""
    sums_R = x_RN.new_zeros(len(x_RN))
    for rows in blocks(len(x_ND), len(y_MD)):
        sums_R += ((x_RN[:, rows] @ _kernel(x_ND[rows], y_MD)) * y_RM).sum(1)
    return sums_R


def _kernel(x_BD: Tensor, y_MD: Tensor) -> Tensor:
    """k(x, y) = (x.y / D + 1)^3 of each pair, (B, M), in float64."""
    base_BM = torch.addmm(x_BD.new_ones(()), x_BD, y_MD.T, alpha=1 / x_BD.shape[1])
    return (base_BM * base_BM * base_BM).double()


def _scale(real_ND: Tensor, fake_MD: Tensor) -> float:
    """The most that the kernel is."""
    longest = max(float(x.square().sum(1).max()) for x in (real_ND, fake_MD))
    return (longest / real_ND.shape[1] + 1) ** 3


def _half(num_rows: int, random: torch.Generator) -> Tensor:
    return torch.randperm(num_rows, generator=random)[: num_rows // 2]
