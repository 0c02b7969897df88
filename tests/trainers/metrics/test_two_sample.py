"""The classifier two-sample test: half where sets are equal, more where they differ, means or not."""

import pytest
import torch

from tests.trainers.metrics.sets import normal
from trainers.metrics.checks import MetricInputError
from trainers.metrics.two_sample import told_apart


def test_equal_distributions_are_told_apart_half_the_time() -> None:
    found = [float(told_apart(normal(150, 5, 2 * s), normal(200, 5, 2 * s + 1), s).mean()) for s in range(12)]
    assert float(torch.tensor(found).mean()) == pytest.approx(0.5, abs=0.03)


def test_another_mean_or_only_another_shape_is_seen() -> None:
    real = normal(300, 5, 0)
    moved, ring = normal(300, 5, 1) + 1.0, normal(300, 5, 2)
    ring = ring / ring.norm(dim=1, keepdim=True) * 5**0.5  # the same mean and covariance, on a sphere
    assert told_apart(real, moved, 0).mean() > 0.8
    assert told_apart(real, ring, 0).mean() > 0.6


def test_each_image_is_predicted_once_the_same_each_time() -> None:
    real, fake = normal(60, 3, 0), normal(45, 3, 1) + 0.5
    found = told_apart(real, fake, 3)
    assert found.shape == (90,)
    assert set(found.tolist()) <= {0.0, 1.0}
    assert torch.equal(found, told_apart(real, fake, 3))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(MetricInputError, match="expected 10 rows of fake features or more, got 9"):
        told_apart(normal(20, 3, 0), normal(9, 3, 1), 0)
