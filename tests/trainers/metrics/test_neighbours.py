"""Precision, recall, density and coverage against the papers' definitions spelled out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainers.metrics.sets import normal, two_sets
from trainers.metrics.neighbours import estimates, neighbourhoods


def reach_by_loops(points: Tensor, k: int) -> list[float]:
    return [sorted(float((p - q).norm()) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]


def share_inside(queries: Tensor, points: Tensor, k: int) -> float:
    reach = reach_by_loops(points, k)
    inside = [any(float((q - p).norm()) <= r for p, r in zip(points, reach, strict=True)) for q in queries]
    return sum(inside) / len(inside)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_the_definition(k: int) -> None:
    real, fake = two_sets(80)
    found = neighbourhoods(real, fake, k=k)
    assert found.precision == pytest.approx(share_inside(fake, real, k))
    assert found.recall == pytest.approx(share_inside(real, fake, k))
    assert 0.05 < found.precision < 0.95
    assert 0.05 < found.recall < 0.95


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_those_of_the_definition(k: int) -> None:
    real, fake = two_sets(80)
    inside = torch.tensor(
        [[float((p - q).norm()) <= r for q in fake] for p, r in zip(real, reach_by_loops(real, k), strict=True)]
    )
    found = neighbourhoods(real, fake, density_k=k)
    assert found.density == pytest.approx(float(inside.sum()) / (k * len(fake)))
    assert found.coverage == pytest.approx(float(inside.any(1).double().mean()))
    assert 0.05 < found.coverage < 0.95


def test_swapping_the_sets_swaps_precision_and_recall() -> None:
    real, fake = two_sets()
    forth, back = neighbourhoods(real, fake), neighbourhoods(fake, real)
    assert (forth.precision, forth.recall) == (back.recall, back.precision)


def test_dropped_mode_costs_recall_and_stray_samples_cost_precision() -> None:
    left, right = normal(200, 4, 0), normal(200, 4, 1) + 20
    both = torch.cat([left, right])
    dropped = neighbourhoods(both, normal(200, 4, 2))
    assert dropped.precision > 0.8
    assert dropped.recall < 0.5
    stray = neighbourhoods(left, torch.cat([normal(100, 4, 3), right[:100]]))
    assert stray.precision < 0.6
    assert neighbourhoods(both, normal(200, 4, 2)).coverage < 0.55


@pytest.mark.parametrize("width", [8, 64])
def test_copies_lie_in_the_ball_of_radius_zero_of_their_twins(width: int) -> None:
    real = torch.cat([normal(30, width, 0)] * 2)  # k = 1: every radius is 0
    fake = torch.cat([real[7:30]] * 2)
    found = neighbourhoods(real, fake, k=1, density_k=1)
    assert found.precision == 1.0
    assert found.recall == 2 * 23 / 60
    assert (found.density, found.coverage) == (2.0, 2 * 23 / 60)


def test_intervals_cover_the_figures_mean_over_new_images() -> None:
    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        return normal(150, 3, 2 * seed), 0.7 + 0.8 * normal(200, 3, 2 * seed + 1)

    means = {name: 0.0 for name in ("precision", "recall", "density", "coverage")}
    for seed in range(60):
        for name in means:
            means[name] += float(getattr(neighbourhoods(*drawn(seed)), name)) / 60
    found = [estimates(*drawn(seed), seed=0, num_parts=60) for seed in range(60)]
    for name, mean in means.items():
        assert np.mean([one[name].low <= mean <= one[name].high for one in found]) >= 0.85, name
