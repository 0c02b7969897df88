"""Copies are found: planted copiers raise every alarm, and honest samplers none."""

import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from tests.trainers.metrics.sets import normal
from trainers.metrics import copies, distances
from trainers.metrics.checks import MetricInputError

WIDTH = 8
TRAINING = normal(2_000, WIDTH, 0)
TEST = normal(400, WIDTH, 1)


def samples(copied: float, noise: float = 0.02) -> Tensor:
    """Samples of the true distribution, a share of which are training images with a little noise."""
    made = normal(500, WIDTH, 2)
    num = int(copied * len(made))
    made[:num] = TRAINING[torch.arange(num) * 3] + noise * normal(num, WIDTH, 3)
    return made


def blocks(size: int = 300) -> tuple[Tensor, ...]:
    return torch.split(TRAINING, size)


@pytest.mark.parametrize("size", [1, 299, 5_000])
def test_nearest_are_those_of_all_distances(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK_BYTES", 8 * 400 * 5)
    expected = torch.cdist(TEST[:30], TRAINING[:700]).topk(4, largest=False)
    found = copies.nearest(TEST[:30], torch.split(TRAINING[:700], size), k=4)
    torch.testing.assert_close(found.distances_QK, expected.values)
    assert torch.equal(found.rows_QK, expected.indices)


def test_nearest_other_leaves_out_the_image_itself() -> None:
    training = torch.cat([TRAINING[:50], TRAINING[:1], TRAINING[:1]])  # three of one
    rows = torch.tensor([0, 7, 50, 51])
    found = copies.nearest_other(rows, copies.nearest(training[rows], [training], k=2))
    among_others = torch.cdist(training[7:8], torch.cat([training[:7], training[8:]])).min()
    torch.testing.assert_close(found, torch.tensor([0.0, float(among_others), 0.0, 0.0]).double(), rtol=1e-6, atol=1e-6)


def test_rank_sum_is_that_of_scipy() -> None:
    ours, theirs = normal(40, 1, 0).flatten().round(decimals=1), normal(60, 1, 1).flatten().round(decimals=1)  # ties
    expected = mannwhitneyu(ours, theirs).statistic
    standardised = (expected - 40 * 60 / 2) / (40 * 60 * 101 / 12) ** 0.5
    assert copies.standardised_rank_sum(ours, theirs) == pytest.approx(standardised, rel=1e-12)


def figures(made: Tensor) -> tuple[float, float, float]:
    """Authenticity, C_T score in two cells, share of near copies."""
    found, test = copies.nearest(made, blocks()), copies.nearest(TEST, blocks())
    rows = found.rows_QK[:, 0]
    others = copies.nearest_other(rows, copies.nearest(TRAINING[rows], blocks(), k=2))
    cells = [(x[:, 0] > 0).long() for x in (made, TEST)]
    authenticity = copies.authentic(found.distances_QK[:, 0], others).mean()
    score = copies.copying_score(found.distances_QK[:, 0], test.distances_QK[:, 0], *cells)
    near = copies.near_copies(copies.closeness(found), copies.closeness(test)).mean()
    return float(authenticity), score, float(near)


def test_an_honest_sampler_raises_no_alarm() -> None:
    authenticity, score, near = figures(samples(0.0))
    assert authenticity == pytest.approx(figures(TEST)[0], abs=0.1)
    assert abs(score) < 3
    assert near < 0.04


def test_planted_copies_raise_every_alarm_by_their_share() -> None:
    honest = figures(samples(0.0))
    for copied in (0.1, 0.3):
        authenticity, score, near = figures(samples(copied))
        assert near == pytest.approx(copied + (1 - copied) * honest[2], abs=0.01)
        assert authenticity < honest[0] * (1 - 0.6 * copied)
        assert score < honest[1] - 1
    assert figures(samples(0.3))[1] < -3


def test_copying_score_has_an_interval_and_needs_images() -> None:
    distances_M, cells_M = normal(100, 1, 0).flatten().abs(), torch.zeros(100)
    distances_N, cells_N = normal(80, 1, 1).flatten().abs(), torch.zeros(80)
    found = copies.copying_score_estimate((distances_M, cells_M), (distances_N, cells_N), seed=0)
    assert found.low < found.value < found.high
    assert 2 < found.high - found.low < 6  # four deviations of a standard normal score
    few = copies.copying_score(distances_M, distances_N[:19], torch.arange(100), cells_N[:19])
    assert few == copies.standardised_rank_sum(distances_M, distances_N[:19])  # no cell of 20: the whole
    with pytest.raises(MetricInputError, match="expected 8 rows of held-out images or more, got 7"):
        copies.copying_score(distances_M, distances_N[:7], cells_M, cells_N[:7])


def test_fewer_training_images_than_neighbours_are_refused() -> None:
    with pytest.raises(MetricInputError, match="expected 10 rows of training features or more, got 9"):
        copies.nearest(TEST, [TRAINING[:9]])
    bad = TRAINING[:20].clone()
    bad[3] = torch.inf
    with pytest.raises(MetricInputError, match="finite training features, got NaN or infinity in 1 of 20"):
        copies.nearest(TEST, [bad])
