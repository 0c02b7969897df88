"""Is a sample a copy of a training image? Figures from each image's nearest training images, against held-out images'.

All of them are alarms: a share of planted copies raises each (the tests do so), while a low alarm proves nothing.

Shape legend: Q images that are asked for, T training images of a block, K nearest.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.metrics.checks import check_rows, finite
from trainers.metrics.distances import squared_distances
from trainers.metrics.intervals import Estimate, tails

NEAREST = 10  # training images whose distances say how dense it is around an image
NEAR_COPY_SHARE = 0.01  # of held-out images that count as near copies
MIN_CELL = 20  # held-out images and samples of a cell of the C_T score, as in the paper
MIN_WHOLE = 8  # from here on the statistic is about normal


@dataclass(frozen=True)
class Nearest:
    """The nearest training images of each image, nearest first."""

    distances_QK: Tensor  # float64
    rows_QK: Tensor  # int64: their numbers in the training split


def nearest(images_QD: Tensor, training: Iterable[Tensor], k: int = NEAREST) -> Nearest:
    """The `k` nearest rows of a training set that comes in blocks (T, D), in order. Memory grows with Q k.

    Raises MetricInputError for features that are not finite and for fewer than `k` training rows.
    """
    images_QD = finite("features", images_QD, 1)
    middle_D = images_QD.mean(0)
    images_QD = images_QD - middle_D
    best_QK = images_QD.new_full((len(images_QD), k), torch.inf)
    rows_QK = torch.full((len(images_QD), k), -1)
    start = 0
    for block_TD in training:
        moved_TD = finite("training features", block_TD, 1) - middle_D
        for rows, squared_BT in squared_distances(images_QD, moved_TD):
            candidates = torch.cat([best_QK[rows], squared_BT.clamp(min=0)], 1)
            best_QK[rows], columns_BK = candidates.topk(k, dim=1, largest=False)
            kept_BK = rows_QK[rows].gather(1, columns_BK.clamp(max=k - 1))
            rows_QK[rows] = torch.where(columns_BK < k, kept_BK, columns_BK - k + start)
        start += len(block_TD)
    check_rows("training features", start, k)
    return Nearest(best_QK.sqrt(), rows_QK)


def nearest_other(rows_Q: Tensor, found: Nearest) -> Tensor:
    """The distance of training images (whose numbers are `rows_Q`) to the nearest training image but themselves, (Q,).

    `found` has two or more nearest of each.
    """
    itself_QK = found.rows_QK == rows_Q[:, None]
    itself_QK[:, -1] |= ~itself_QK.any(1)  # twins of it fill all places: its own is one of theirs
    return found.distances_QK.masked_fill(itself_QK, torch.inf).min(1).values


def authentic(sample_distances_M: Tensor, neighbour_distances_M: Tensor) -> Tensor:
    """1.0 where a sample is further from its nearest training image than that one is from any other, else 0.0, (M,).

    Its mean is the authenticity of Alaa et al. 2022. Read it beside that of held-out images, which is above one half:
    an image's nearest neighbour is likely to be one with near neighbours itself.
    """
    return (sample_distances_M > neighbour_distances_M).double()


def closeness(found: Nearest) -> Tensor:
    """An image's distance to its nearest training image, over the mean distance to the next ones, in [0, 1], (Q,).

    Near 0 it is a copy wherever it lies; a plain distance would call every image in a dense region one (after Carlini
    et al. 2023, section 3.2). 0 where all of the next ones are copies too.
    """
    around_Q = found.distances_QK[:, 1:].mean(1)
    return torch.where(around_Q > 0, found.distances_QK[:, 0] / around_Q, 0.0)


def near_copies(sample_closeness_M: Tensor, test_closeness_N: Tensor) -> Tensor:
    """1.0 where a sample is closer than all but 1% of held-out images are, else 0.0, (M,); 0.01 is no alarm."""
    check_rows("held-out images", len(test_closeness_N), 2)
    return (sample_closeness_M < test_closeness_N.quantile(NEAR_COPY_SHARE)).double()


def copying_score(
    sample_distances_M: Tensor, test_distances_N: Tensor, sample_cells_M: Tensor, test_cells_N: Tensor
) -> float:
    """The C_T score of Meehan, Chaudhuri & Dasgupta 2020: below about -3 samples are closer to the training images
    than held-out images are, so copied; above 3 the model underfits.

    Mann and Whitney's statistic of both sets of distances to the nearest training image, standardised, in each cell of
    the space, weighed by the cells' held-out images. Cells with too few images are left out; where all are, the whole
    is one cell. Raises MetricInputError for fewer than 8 of either.
    """
    check_rows("samples", len(sample_distances_M), MIN_WHOLE)
    check_rows("held-out images", len(test_distances_N), MIN_WHOLE)
    total, weight = 0.0, 0
    for cell in torch.unique(test_cells_N):
        ours, theirs = sample_distances_M[sample_cells_M == cell], test_distances_N[test_cells_N == cell]
        if min(len(ours), len(theirs)) >= MIN_CELL:
            total += len(theirs) * standardised_rank_sum(ours, theirs)
            weight += len(theirs)
    return total / weight if weight else standardised_rank_sum(sample_distances_M, test_distances_N)


def standardised_rank_sum(ours_M: Tensor, theirs_N: Tensor) -> float:
    """Mann and Whitney's U of `ours` over `theirs`, less its mean, over its deviation without ties."""
    ordered_N = theirs_N.sort().values
    ours_M = ours_M.contiguous()
    below_M, upto_M = (torch.searchsorted(ordered_N, ours_M, right=right) for right in (False, True))
    u = float((below_M + upto_M).sum()) / 2
    m, n = len(ours_M), len(theirs_N)
    return (u - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12)


def copying_score_estimate(
    samples: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int, *, num_resamples: int = 200
) -> Estimate:
    """The C_T score of (distances, cells) of samples and of held-out images, with its percentile bootstrap interval."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(num_resamples):
        ours, theirs = (torch.randint(len(x[0]), (len(x[0]),), generator=random) for x in (samples, test))
        resampled = samples[0][ours], test[0][theirs], samples[1][ours], test[1][theirs]
        found.append(copying_score(*resampled))
    value = copying_score(samples[0], test[0], samples[1], test[1])
    return Estimate(value, *tails(torch.tensor(found)))
