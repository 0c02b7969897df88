"""Figures of merit as pure functions on features (or on classes) of real and generated images.

They know nothing of datasets, networks or stores: `evaluate` hands them what an extractor gave. Features are
torch tensors (N, D) of any float type on any one device; all arithmetic is in float64, and distances are
computed a block of rows at a time, so that memory grows with N, not with N x M.

Every function raises MetricInputError, in one line, for features that are not finite, for too few rows, and
for sets of different width. Names: `real` are images of the held-out split, `fake` generated ones.

Intervals: `bootstrap_interval` for the mean of per-image values; `half_sample_interval` for a figure of two
whole sets. k-nearest-neighbour figures and unbiased estimators must not meet a row twice (its distance to
itself is 0), so whole-set intervals come from halves drawn without replacement, never from a bootstrap with
replacement.

Shape legend: N real images, M generated ones, D feature size, K classes, R resamples, B rows of one block.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import UserError

BLOCK_BYTES = 16 * 2**20  # of one block of distances
CONFIDENCE = 0.95

Interval = tuple[float, float]


class MetricInputError(UserError):
    """A figure was asked of features or classes that it is not defined on."""


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]: of generated images near real ones, and of real images near generated ones."""

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """`density` is not bounded by 1 (about 1 for equal distributions); `coverage` is a share in [0, 1]."""

    density: float
    coverage: float


# Distances between distributions of features


def frechet_distance(real_ND: Tensor, fake_MD: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features, 0 or more (Heusel et al. 2017).

        |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))

    With S1 = A^T A and S2 = B^T B the last trace is the sum of the singular values of A B^T (they are the
    roots of the eigenvalues of S1 S2). That needs no root of a matrix, so it is exact for singular
    covariances too: N < D, or features that are constant. Its bias is about 1/N and depends on the generator:
    compare equal numbers only. Needs 2 rows of each.
    """
    real_ND, fake_MD = _pair(real_ND, fake_MD, rows=2)
    real_mean, fake_mean = real_ND.mean(0), fake_MD.mean(0)
    A, B = _covariance_factor(real_ND - real_mean), _covariance_factor(fake_MD - fake_mean)
    cross = torch.linalg.svdvals(A @ B.T).sum()
    distance = (real_mean - fake_mean).square().sum() + A.square().sum() + B.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def kernel_distance(real_ND: Tensor, fake_MD: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy under k(x, y) = (x.y / D + 1)^3 (Binkowski et al. 2018, KID).

    All pairs are used: no subsets. Being unbiased it may be slightly below 0 for equal distributions. Needs 2
    rows of each.
    """
    real_ND, fake_MD = _pair(real_ND, fake_MD, rows=2)
    every = real_ND.new_ones(1, len(real_ND)), real_ND.new_ones(1, len(fake_MD))
    return float(_kernel_distances(real_ND, fake_MD, *every))


def kernel_distance_interval(
    real_ND: Tensor, fake_MD: Tensor, seed: int, *, num_resamples: int = 200, confidence: float = CONFIDENCE
) -> Interval:
    """`half_sample_interval` of the kernel distance, all halves in one pass. Needs 4 rows of each."""
    real_ND, fake_MD = _pair(real_ND, fake_MD, rows=4)
    random = torch.Generator().manual_seed(seed)
    real_RN, fake_RM = (
        real_ND.new_zeros(num_resamples, len(real_ND)),
        real_ND.new_zeros(num_resamples, len(fake_MD)),
    )
    for resample in range(num_resamples):
        real_RN[resample, _half(len(real_ND), random)] = 1
        fake_RM[resample, _half(len(fake_MD), random)] = 1
    return _around(kernel_distance(real_ND, fake_MD), _kernel_distances(real_ND, fake_MD, real_RN, fake_RM), confidence)


# Nearest neighbours


def precision_recall(real_ND: Tensor, fake_MD: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019).

    A set's manifold is the union of the closed balls around its points that reach to their k-th nearest
    neighbour in the set, itself not counted. Needs k + 1 rows of each.
    """
    real_ND, fake_MD = _centred(*_pair(real_ND, fake_MD, rows=_checked_k(k) + 1))
    real_reach_N, fake_reach_M = _reach(real_ND, k), _reach(fake_MD, k)
    near_real_M = torch.zeros(len(fake_MD), dtype=torch.bool, device=fake_MD.device)
    num_near_fake = 0
    for rows, squared_BM in _squared_distances(real_ND, fake_MD):
        near_real_M |= (squared_BM <= real_reach_N[rows, None]).any(0)
        num_near_fake += int((squared_BM <= fake_reach_M).any(1).sum())
    return PrecisionRecall(float(near_real_M.double().mean()), num_near_fake / len(real_ND))


def density_coverage(real_ND: Tensor, fake_MD: Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020), with closed balls around the real points.

    Density counts in how many real balls a generated image lies, over k; coverage is the share of real balls
    with a generated image in them. Needs k + 1 real rows and one generated.
    """
    real_ND, fake_MD = _centred(*_pair(real_ND, fake_MD, rows=_checked_k(k) + 1, fake_rows=1))
    reach_N = _reach(real_ND, k)
    num_inside, num_covered = 0, 0
    for rows, squared_BM in _squared_distances(real_ND, fake_MD):
        inside_BM = squared_BM <= reach_N[rows, None]
        num_inside += int(inside_BM.sum())
        num_covered += int(inside_BM.any(1).sum())
    return DensityCoverage(num_inside / (k * len(fake_MD)), num_covered / len(real_ND))


# Classes


def class_histogram_distance(real_N: Tensor, fake_M: Tensor, num_classes: int) -> float:
    """Total variation in [0, 1] between the frequencies of two sets of classes in [0, num_classes)."""
    real_K, fake_K = (_class_shares(name, c, num_classes) for name, c in (("real", real_N), ("fake", fake_M)))
    return float((real_K - fake_K).abs().sum() / 2)


def label_agreement(predicted_M: Tensor, wanted_M: Tensor) -> Tensor:
    """1.0 where the class read from an image is the one asked for, else 0.0: (M,) float64; average it."""
    if predicted_M.shape != wanted_M.shape or predicted_M.ndim != 1 or not len(predicted_M):
        raise MetricInputError(
            "label agreement: expected two equally long rows of classes, "
            f"got {tuple(predicted_M.shape)} and {tuple(wanted_M.shape)}; read the class of every sample"
        )
    return (predicted_M == wanted_M).double()


# Intervals


def bootstrap_interval(
    per_image_values: Tensor, seed: int, *, num_resamples: int = 1_000, confidence: float = CONFIDENCE
) -> Interval:
    """Percentile bootstrap interval (low, high) of the mean of per-image values (N,), 2 or more.

    It has no width where all values are equal: read a share of exactly 0 or 1 with the number of images in mind.
    """
    values_N = _finite("values", per_image_values.reshape(-1, 1), rows=2).flatten().cpu()
    random = torch.Generator().manual_seed(seed)
    means = [
        values_N[torch.randint(len(values_N), (len(values_N),), generator=random)].mean() for _ in range(num_resamples)
    ]
    tail = (1 - confidence) / 2
    low, high = torch.stack(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def half_sample_interval(
    statistic: Callable[[Tensor, Tensor], float],
    real: Tensor,
    fake: Tensor,
    seed: int,
    *,
    num_resamples: int = 200,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Interval (low, high) of `statistic(real, fake)` from halves of both sets, drawn without replacement.

    The spread of a statistic over half samples, given the whole sample, is that of the whole sample's statistic
    where it is smooth, and wider, so on the safe side, where it is degenerate (a distance of two equal distributions):
    Politis & Romano 1994 with a subsample of n/2 and the finite-population correction, which is then 1. Only the
    spread is taken: centring removes what a half has more of a bias such as the Frechet distance's. The interval is
    for the figure at this number of images, its bias included. Rows are dim 0, 4 or more of each; `statistic` is
    called `num_resamples` times on half of them.
    """
    _check_rows("real", real, 4)
    _check_rows("fake", fake, 4)
    random = torch.Generator().manual_seed(seed)
    halves = [statistic(real[_half(len(real), random)], fake[_half(len(fake), random)]) for _ in range(num_resamples)]
    return _around(statistic(real, fake), torch.tensor(halves, dtype=torch.float64), confidence)


# How they are computed


def _covariance_factor(centred_ND: Tensor) -> Tensor:
    """A matrix A with A^T A the unbiased covariance: the rows themselves while they are few, else (D, D)."""
    num_rows, width = centred_ND.shape
    if num_rows <= width:
        return centred_ND / math.sqrt(num_rows - 1)
    values_D, vectors_DD = torch.linalg.eigh(centred_ND.T @ centred_ND / (num_rows - 1))
    factor_DD: Tensor = values_D.clamp(min=0).sqrt()[:, None] * vectors_DD.T
    return factor_DD


def _kernel_distances(real_ND: Tensor, fake_MD: Tensor, real_RN: Tensor, fake_RM: Tensor) -> Tensor:
    """The kernel distance of each of R pairs of subsets, (R,); a subset is a row of zeros and ones."""
    cross_R = _kernel_sums(real_ND, fake_MD, real_RN, fake_RM)
    num_real_R, num_fake_R = real_RN.sum(1), fake_RM.sum(1)
    return _mean_within(real_ND, real_RN) + _mean_within(fake_MD, fake_RM) - 2 * cross_R / (num_real_R * num_fake_R)


def _mean_within(x_ND: Tensor, subset_RN: Tensor) -> Tensor:
    """The mean kernel over the pairs of two different rows in each subset, (R,)."""
    itself_N: Tensor = (x_ND.square().sum(1) / x_ND.shape[1] + 1) ** 3
    num_R = subset_RN.sum(1)
    return (_kernel_sums(x_ND, x_ND, subset_RN, subset_RN) - subset_RN @ itself_N) / (num_R * (num_R - 1))


def _kernel_sums(x_ND: Tensor, y_MD: Tensor, x_RN: Tensor, y_RM: Tensor) -> Tensor:
    """The sum of the kernel over all pairs of each subset of x with the same one of y, (R,)."""
    sums_R = x_ND.new_zeros(len(x_RN))
    for rows in _blocks(len(x_ND), len(y_MD)):
        kernel_BM = (x_ND[rows] @ y_MD.T / x_ND.shape[1] + 1) ** 3
        sums_R += ((x_RN[:, rows] @ kernel_BM) * y_RM).sum(1)
    return sums_R


def _reach(points_ND: Tensor, k: int) -> Tensor:
    """Squared distance of each point to its k-th nearest other point, (N,), with room for rounding.

    |x|^2 + |y|^2 - 2 x.y of two equal points is not exactly 0; without the room a duplicate would miss the
    ball of radius 0 that its twin has.
    """
    # One result made beforehand: small ones kept from every block would pin the blocks' freed memory between them.
    reach_N = torch.empty_like(points_ND[:, 0])
    for rows, squared_BN in _squared_distances(points_ND, points_ND):
        squared_BN.diagonal(rows.start).fill_(torch.inf)
        reach_N[rows] = squared_BN.topk(k, dim=1, largest=False).values[:, -1]
    room = 64 * torch.finfo(torch.float64).eps * points_ND.square().sum(1).max()
    return reach_N + room


def _squared_distances(x_ND: Tensor, y_MD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared Euclidean distances, a block (B, M) of rows of x at a time, with the rows it is of."""
    y_squared_M = y_MD.square().sum(1)
    for rows in _blocks(len(x_ND), len(y_MD)):
        x_BD = x_ND[rows]
        yield rows, torch.addmm(y_squared_M + x_BD.square().sum(1, keepdim=True), x_BD, y_MD.T, alpha=-2)


def _blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices over the rows, so that a float64 block of them and all columns stays within BLOCK_BYTES."""
    height = max(1, BLOCK_BYTES // (8 * num_columns))
    for start in range(0, num_rows, height):
        yield slice(start, min(start + height, num_rows))


def _half(num_rows: int, random: torch.Generator) -> Tensor:
    return torch.randperm(num_rows, generator=random)[: num_rows // 2]


def _around(value: float, halves_R: Tensor, confidence: float) -> Interval:
    """The interval about the whole sample's value, from the spread of the halves' values about their mean."""
    tail = (1 - confidence) / 2
    offsets_R = halves_R.cpu() - halves_R.cpu().mean()
    low, high = offsets_R.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return value + low, value + high


def _centred(real_ND: Tensor, fake_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets moved by one vector to about 0: the same distances, with fewer digits lost in them."""
    middle_D = real_ND.mean(0)
    return real_ND - middle_D, fake_MD - middle_D


def _class_shares(name: str, classes: Tensor, num_classes: int) -> Tensor:
    if classes.ndim != 1 or not len(classes) or classes.min() < 0 or classes.max() >= num_classes:
        seen = f"[{int(classes.min())}, {int(classes.max())}]" if classes.numel() else "none"
        raise MetricInputError(
            f"class histogram: expected {name} classes (N,) in [0, {num_classes}), got {seen} of shape "
            f"{tuple(classes.shape)}; read the class of every image with the dataset's own extractor"
        )
    return torch.bincount(classes, minlength=num_classes).double() / len(classes)


# Checks


def _pair(real_ND: Tensor, fake_MD: Tensor, rows: int, fake_rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Both sets in float64. Raises MetricInputError."""
    real_ND = _finite("real features", real_ND, rows)
    fake_MD = _finite("fake features", fake_MD, rows if fake_rows is None else fake_rows)
    if real_ND.shape[1] != fake_MD.shape[1]:
        raise MetricInputError(
            f"expected real and fake features of one size, got {real_ND.shape[1]} and {fake_MD.shape[1]}; "
            "compute both with the same extractor"
        )
    return real_ND, fake_MD


def _finite(name: str, x_ND: Tensor, rows: int) -> Tensor:
    if x_ND.ndim != 2 or x_ND.shape[1] == 0:
        raise MetricInputError(
            f"expected {name} (N, D), got the shape {tuple(x_ND.shape)}; flatten each image's features"
        )
    _check_rows(name, x_ND, rows)
    x_ND = x_ND.detach().double()
    bad = int((~x_ND.isfinite()).any(1).sum())
    if bad:
        raise MetricInputError(
            f"expected finite {name}, got NaN or infinity in {bad:,} of {len(x_ND):,} rows; "
            "look at the images that they are of"
        )
    return x_ND


def _check_rows(name: str, x: Tensor, rows: int) -> None:
    if len(x) < rows:
        raise MetricInputError(f"expected {rows} rows of {name} or more, got {len(x)}; evaluate on more images")


def _checked_k(k: int) -> int:
    if k < 1:
        raise MetricInputError(f"expected a number of neighbours of 1 or more, got {k}; the papers use 3 and 5")
    return k
