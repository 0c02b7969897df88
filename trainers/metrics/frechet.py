"""The Frechet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017).

    |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))

On the Inception network's features this is the FID; on any others it is called by its own name. Features are streamed
into `Moments`, whose size does not depend on the number of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from trainers.metrics.checks import check_rows, check_width, finite
from trainers.metrics.intervals import NUM_PARTS, Estimate, around

GROUP_BYTES = 512 << 20  # of the groups' scatter matrices: fewer groups of wider features
MAX_GROUPS = 32
RESAMPLE_VALUES = 1 << 24  # of the resamples' covariances are in memory at once
WIDE_FEATURES = 512  # above, a distance takes seconds ...
SCATTER_COLUMNS = 256
LEAST_PIVOT = 1e-10  # of the largest: what a covariance that counts as regular has at least
WIDE_PARTS = 20  # ... so that fewer parts are drawn


@dataclass(frozen=True)
class Moments:
    """Counts, means and scatter matrices (sums of outer products about the mean) of G groups of rows, in float64."""

    counts_G: Tensor
    means_GD: Tensor
    scatters_GDD: Tensor

    @classmethod
    def of(cls, x_ND: Tensor, num_groups: int = 1) -> Self:
        """The moments of rows that are in memory, in groups of consecutive rows. Raises MetricInputError."""
        return cls.groups([_moments(part) for part in finite("features", x_ND, num_groups).tensor_split(num_groups)])

    @classmethod
    def none(cls, width: int, device: torch.device | None = None) -> Self:
        """One group without rows."""
        zero = torch.zeros(1, dtype=torch.float64, device=device)
        return cls(zero, zero.new_zeros(1, width), zero.new_zeros(1, width, width))

    @classmethod
    def groups(cls, parts: "Sequence[Moments]") -> Self:
        """Groups of several, in their order."""
        return cls(
            torch.cat([part.counts_G for part in parts]),
            torch.cat([part.means_GD for part in parts]),
            torch.cat([part.scatters_GDD for part in parts]),
        )

    def with_rows(self, x_ND: Tensor) -> "Moments":
        """These moments of one group with further rows (Chan, Golub & LeVeque 1983). Raises MetricInputError."""
        new = _moments(finite("features", x_ND, 1))
        count, added = self.counts_G[0], new.counts_G[0]
        shift_D = new.means_GD[0] - self.means_GD[0]
        scatter_DD = self.scatters_GDD[0] + new.scatters_GDD[0]
        scatter_DD += torch.outer(shift_D, shift_D) * (count * added / (count + added))
        moved_D = self.means_GD[0] + shift_D * (added / (count + added))
        return Moments((count + added)[None], moved_D[None], scatter_DD[None])

    @property
    def count(self) -> int:
        """Rows of all groups."""
        return int(self.counts_G.sum())

    @property
    def width(self) -> int:
        """D."""
        return self.means_GD.shape[1]

    def pooled(self, chosen_RG: Tensor) -> "Gaussians":
        """The Gaussians fitted to R unions of groups, which `chosen_RG` has ones for."""
        counts_RG = chosen_RG * self.counts_G
        counts_R = counts_RG.sum(1)
        means_RD = counts_RG @ self.means_GD / counts_R[:, None]
        shifts_RGD = self.means_GD - means_RD[:, None]
        scatters_RDD = (chosen_RG @ self.scatters_GDD.flatten(1)).view(len(chosen_RG), self.width, self.width)
        scatters_RDD += shifts_RGD.mT @ (counts_RG[:, :, None] * shifts_RGD)
        return Gaussians(means_RD, scatters_RDD / (counts_R - 1)[:, None, None])

    def whole(self) -> "Gaussians":
        """The Gaussian fitted to all rows."""
        return self.pooled(torch.ones_like(self.counts_G)[None])


@dataclass(frozen=True)
class Gaussians:
    """R Gaussians, fitted or given: means and unbiased covariances."""

    means_RD: Tensor
    covariances_RDD: Tensor


@dataclass(frozen=True)
class Frechet:
    """The distance at the number of images there are, and its extrapolation to infinitely many."""

    distance: Estimate
    unbiased: Estimate


def num_groups(rows: int, width: int) -> int:
    """How many groups moments of so many rows are kept in, for intervals: 2 or more rows each where there are 4."""
    return max(2, min(MAX_GROUPS, rows // 2, GROUP_BYTES // (8 * width * width)))


def distances(first: Gaussians, second: Gaussians) -> Tensor:
    """The Frechet distance of each pair of Gaussians, 0 or more, (R,).

    With S1 = A^T A the last trace is the sum of the roots of the eigenvalues of A S2 A^T, which are those of S1 S2.
    That needs no root of a matrix and no general eigenvalues. A has no more rows than S1's rank, so that singular
    covariances (N < D, or features that are constant) give no eigenvalues of 0, whose roots would be 1e-8 by rounding:
    give the set of lower rank first.
    """
    factor_RKD = _factor(first.covariances_RDD)
    product_RKK = factor_RKD @ second.covariances_RDD @ factor_RKD.mT
    cross_R = torch.linalg.eigvalsh(product_RKK).clamp(min=0).sqrt().sum(1)
    traces_R = sum(s.covariances_RDD.diagonal(dim1=1, dim2=2).sum(1) for s in (first, second))
    shifts_R = (first.means_RD - second.means_RD).square().sum(1)
    found_R: Tensor = (shifts_R + traces_R - 2 * cross_R).clamp(min=0)
    return found_R


def frechet_distance(real: Moments | Tensor, fake: Moments | Tensor) -> float:
    """The distance of two sets of features, or of their moments.

    Its bias is about 1/N and depends on the generator: compare equal numbers only. Needs 2 rows of each.
    """
    if isinstance(real, Tensor):
        real = _moments(finite("real features", real, 2))
    if isinstance(fake, Tensor):
        fake = _moments(finite("fake features", fake, 2))
    _check(real, fake, 2)
    first, second = sorted((real, fake), key=lambda moments: moments.count)
    return float(distances(first.whole(), second.whole())[0])


def estimate(real: Moments, fake: Moments, seed: int, *, num_parts: int | None = None) -> Frechet:
    """The distance with its interval, and the distance extrapolated to infinitely many images with its own.

    The interval is that of `intervals.subsampled` with random halves of the groups for halves of the rows. The bias is
    proportional to 1/N up to smaller terms (Chong & Forsyth 2020), so the distance at half the images has twice the
    bias: 2 d(N) - d(N/2), with the mean over the halves for the latter, is the intercept of their line. It may be below
    0, which says that the sets are not told apart. Needs 2 groups of each and 4 rows.
    """
    _check(real, fake, 4)
    parts = num_parts or (WIDE_PARTS if real.width > WIDE_FEATURES else NUM_PARTS)
    random = torch.Generator().manual_seed(seed)
    chunk = max(1, RESAMPLE_VALUES // real.width**2)
    halves: list[Tensor] = []
    for start in range(0, parts, chunk):
        num = min(chunk, parts - start)
        chosen = [(moments.count, moments.pooled(_halves(moments, num, random))) for moments in (real, fake)]
        (_, first), (_, second) = sorted(chosen, key=lambda one: one[0])
        halves.append(distances(first, second))
    halves_R = torch.cat(halves)
    offsets_R = halves_R - halves_R.mean()
    value = frechet_distance(real, fake)
    return Frechet(around(value, offsets_R), around(2 * value - float(halves_R.mean()), offsets_R))


def _moments(x_ND: Tensor) -> Moments:
    """One group of finite rows in float64."""
    mean_D = x_ND.mean(0)
    count = torch.tensor([len(x_ND)], dtype=torch.float64, device=x_ND.device)
    return Moments(count, mean_D[None], _scatter(x_ND - mean_D)[None])


def _factor(covariances_RDD: Tensor) -> Tensor:
    """Matrices A with A^T A the covariances, without the rows that are 0 in all of them up to rounding.

    Cholesky's where no covariance is near singular (in a twentieth of the time), else by eigenvalues.
    """
    lower_RDD, failed_R = torch.linalg.cholesky_ex(covariances_RDD)
    pivots_RD = lower_RDD.diagonal(dim1=1, dim2=2).square()
    if not failed_R.any() and bool((pivots_RD.amin(1) > LEAST_PIVOT * pivots_RD.amax(1)).all()):
        factor: Tensor = lower_RDD.mT
        return factor
    values_RD, vectors_RDD = torch.linalg.eigh(covariances_RDD)
    values_RD = values_RD.clamp(min=0)
    least = values_RD.amax(1, keepdim=True) * values_RD.shape[1] * torch.finfo(torch.float64).eps
    rank = max(1, int((values_RD > least).sum(1).max()))
    factor = values_RD[:, -rank:, None].sqrt() * vectors_RDD[:, :, -rank:].mT
    return factor


def _scatter(x_ND: Tensor) -> Tensor:
    """x^T x; of wide rows only the blocks on and above the diagonal are multiplied, the others mirror them."""
    width = x_ND.shape[1]
    if width <= WIDE_FEATURES:
        return x_ND.T @ x_ND
    scatter_DD = x_ND.new_empty(width, width)
    for start in range(0, width, SCATTER_COLUMNS):
        columns = slice(start, start + SCATTER_COLUMNS)
        scatter_DD[columns, start:] = x_ND[:, columns].T @ x_ND[:, start:]
        scatter_DD[start:, columns] = scatter_DD[columns, start:].T
    return scatter_DD


def _halves(moments: Moments, num: int, random: torch.Generator) -> Tensor:
    """`num` random halves of the groups, as ones, (num, G)."""
    groups = len(moments.counts_G)
    order_RG = torch.rand(num, groups, generator=random).argsort(1)
    chosen_RG = torch.zeros(num, groups, dtype=torch.float64).scatter_(1, order_RG[:, : groups // 2], 1)
    return chosen_RG.to(moments.counts_G.device)


def _check(real: Moments, fake: Moments, rows: int) -> None:
    check_rows("real features", real.count, rows)
    check_rows("fake features", fake.count, rows)
    check_width(real.width, fake.width)
