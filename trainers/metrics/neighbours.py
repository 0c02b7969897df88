"""Figures from the nearest neighbours of real and generated images: precision, recall, density, coverage."""

from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from trainers.metrics import intervals
from trainers.metrics.checks import checked_k, pair
from trainers.metrics.distances import centred, rounding_room, squared_distances
from trainers.metrics.intervals import Estimate

MANIFOLD_NEIGHBOURS = 3  # k of precision and recall, as Kynkaanniemi et al. 2019
DENSITY_NEIGHBOURS = 5  # k of density and coverage, as Naeem et al. 2020
PART_ROWS = 1_000  # of the larger set in one part of an interval
NUM_PARTS = 100


@dataclass(frozen=True)
class Neighbourhoods:
    """Precision, recall and coverage are shares in [0, 1]; density is about 1 for equal distributions, unbounded."""

    precision: float  # of generated images near real ones
    recall: float  # of real images near generated ones
    density: float  # in how many real balls a generated image lies, over k
    coverage: float  # of real images with a generated one near


def neighbourhoods(
    real_ND: Tensor, fake_MD: Tensor, k: int = MANIFOLD_NEIGHBOURS, density_k: int = DENSITY_NEIGHBOURS
) -> Neighbourhoods:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), closed balls.

    The ball of a point reaches to its k-th nearest neighbour in its own set, itself not counted; a set's manifold is
    the union of its balls. Density and coverage have real balls only. Needs more rows of each set than neighbours.
    """
    most = max(checked_k(k), checked_k(density_k))
    real_ND, fake_MD = centred(*pair(real_ND, fake_MD, rows=most + 1, fake_rows=k + 1))
    real_reach_2N, fake_reach_1M = _reach(real_ND, (k, density_k)), _reach(fake_MD, (k,))
    near_real_M = torch.zeros(len(fake_MD), dtype=torch.bool, device=fake_MD.device)
    num_near_fake, num_inside, num_covered = 0, 0, 0
    for rows, squared_BM in squared_distances(real_ND, fake_MD):
        near_real_M |= (squared_BM <= real_reach_2N[0, rows, None]).any(0)
        num_near_fake += int((squared_BM <= fake_reach_1M[0]).any(1).sum())
        inside_B = (squared_BM <= real_reach_2N[1, rows, None]).sum(1)
        num_inside += int(inside_B.sum())
        num_covered += int((inside_B > 0).sum())
    return Neighbourhoods(
        precision=float(near_real_M.double().mean()),
        recall=num_near_fake / len(real_ND),
        density=num_inside / (density_k * len(fake_MD)),
        coverage=num_covered / len(real_ND),
    )


def estimates(real_ND: Tensor, fake_MD: Tensor, seed: int, *, num_parts: int = NUM_PARTS) -> dict[str, Estimate]:
    """The figures by their names, with intervals from parts of both sets (`intervals.subsampled`)."""

    def figures(real_ND: Tensor, fake_MD: Tensor) -> tuple[float, ...]:
        return astuple(neighbourhoods(real_ND, fake_MD))

    found = intervals.subsampled(figures, real_ND, fake_MD, seed, most_rows=PART_ROWS, num_parts=num_parts)
    names = ("precision", "recall", "density", "coverage")
    return {name: _within(estimate, name) for name, estimate in zip(names, found, strict=True)}


def _within(estimate: Estimate, name: str) -> Estimate:
    """A share's interval, cut to what a share can be."""
    high = estimate.high if name == "density" else min(estimate.high, 1.0)
    return Estimate(estimate.value, max(estimate.low, 0.0), high)


def _reach(points_ND: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Squared distance of each point to its k-th nearest other point for each k, (len(ks), N), with room for rounding.

    Without the room a duplicate would miss the ball of radius 0 that its twin has.
    """
    # One result made beforehand: small ones kept from every block would pin the blocks' freed memory between them.
    reach_KN = points_ND.new_empty(len(ks), len(points_ND))
    columns = torch.tensor([k - 1 for k in ks], device=points_ND.device)
    for rows, squared_BN in squared_distances(points_ND, points_ND):
        squared_BN.diagonal(rows.start).fill_(torch.inf)
        reach_KN[:, rows] = squared_BN.topk(max(ks), dim=1, largest=False).values[:, columns].T
    return reach_KN + rounding_room(points_ND)
