"""The mixtures' figures on samplers whose scores are known."""

import math

import pytest
import torch

from trainers import mixtures
from trainers.mixtures import NUM_POINTS, Mixture

BOTH = [mixtures.ring8(), mixtures.grid25()]
IDS = [mixture.name for mixture in BOTH]


def test_the_mixtures_are_those_of_the_protocol() -> None:
    ring, grid = BOTH
    assert (len(ring.means_KD), ring.sigma, len(grid.means_KD), grid.sigma) == (8, 0.01, 25, 0.05)
    assert torch.allclose(ring.means_KD.norm(dim=1), torch.ones(8))
    neighbours = (ring.means_KD - ring.means_KD.roll(1, 0)).norm(dim=1)
    assert torch.allclose(neighbours, torch.full((8,), 2 * math.sin(math.pi / 8)))
    assert {tuple(mean) for mean in grid.means_KD.tolist()} == {
        (x, y) for x in (-4.0, -2.0, 0.0, 2.0, 4.0) for y in (-4.0, -2.0, 0.0, 2.0, 4.0)
    }


@pytest.mark.parametrize("mixture", BOTH, ids=IDS)
def test_a_perfect_sampler_scores_what_theory_says(mixture: Mixture) -> None:
    """98.9% good; a divergence of (modes - 1) / (2 points) in the mean: 0.0014 (ring), 0.0048 (grid)."""
    generator = torch.Generator().manual_seed(0)
    scores = [mixtures.score(mixture, mixture.draw(NUM_POINTS, generator)) for _ in range(100)]
    modes = len(mixture.means_KD)
    assert all(score.modes == modes for score in scores)
    good = sum(score.good for score in scores) / 100
    assert good == pytest.approx(1 - math.exp(-4.5), abs=1e-3)
    reverse_kl = sum(score.reverse_kl for score in scores) / 100
    assert reverse_kl == pytest.approx((modes - 1) / (2 * NUM_POINTS), rel=0.15)
    assert reverse_kl == pytest.approx(0.0014 if mixture.name == "ring8" else 0.0048, rel=0.15)


@pytest.mark.parametrize("mixture", BOTH, ids=IDS)
def test_dropped_modes_are_counted_and_cost_their_logarithm(mixture: Mixture) -> None:
    modes = len(mixture.means_KD)
    kept = mixture.means_KD[:4].repeat(100, 1)
    score = mixtures.score(mixture, kept)
    assert (score.modes, score.good) == (4, 1.0)
    assert score.reverse_kl == pytest.approx(math.log(modes / 4), rel=1e-6)


def test_a_point_is_good_within_three_deviations_and_counts_for_its_nearest_mode_anyhow() -> None:
    grid = mixtures.grid25()
    inside, outside = torch.tensor([0.149, 0.0]), torch.tensor([2.151, 2.0])
    score = mixtures.score(grid, torch.stack([inside, outside]))
    assert (score.modes, score.good) == (1, 0.5)
    assert score.reverse_kl == pytest.approx(math.log(25 / 2))  # a histogram over two modes


def test_the_divergence_is_the_reverse_one() -> None:
    """sum q log(q / p) of shares q = 3/4, 1/4: finite though other modes are empty, and not symmetric."""
    grid = mixtures.grid25()
    points = grid.means_KD[[0, 0, 0, 1]]
    expected = 0.75 * math.log(0.75 * 25) + 0.25 * math.log(0.25 * 25)
    assert mixtures.score(grid, points).reverse_kl == pytest.approx(expected)


def test_networks_see_points_times_the_scale_and_give_them_back() -> None:
    points = mixtures.grid25().draw(1000, torch.Generator().manual_seed(1))
    images = mixtures.to_images(points, 2.0)
    assert images.shape == (1000, 2, 1, 1)
    seen = 2 * images - 1  # what an adversarial family makes of a batch's images
    torch.testing.assert_close(seen.flatten(1), 2 * points)
    torch.testing.assert_close(mixtures.from_network(seen, 2.0), points)
