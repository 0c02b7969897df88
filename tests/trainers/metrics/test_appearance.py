"""Blur costs sharpness, one image again and again costs diversity: ladders of known damage."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, laplace
from sklearn.datasets import load_digits
from torch import Tensor

from tests.trainers.metrics.sets import normal
from trainers.metrics.appearance import sharpness, spread
from trainers.metrics.checks import MetricInputError


def digits() -> Tensor:
    return torch.from_numpy(load_digits().images[:200] / 16)[:, None].float()


def test_sharpness_is_that_of_scipys_laplacian() -> None:
    images = digits()[:20].repeat(1, 2, 1, 1)
    images[:, 1] = 0
    expected = [(laplace(image[0].double().numpy(), mode="nearest") ** 2).mean() / 2 for image in images]
    torch.testing.assert_close(sharpness(images), torch.tensor(expected))


def test_each_step_of_blur_costs_sharpness() -> None:
    images = digits()
    blurred = [gaussian_filter(images.numpy(), (0, 0, sigma, sigma)) for sigma in (0.0, 0.4, 0.6, 0.8, 1.2)]
    ratios = [float(sharpness(torch.from_numpy(one)).mean() / sharpness(images).mean()) for one in blurred]
    assert ratios[0] == pytest.approx(1)
    assert all(after < 0.8 * before for before, after in itertools.pairwise(ratios))


def test_spread_averages_to_half_the_mean_squared_distance_of_two_images_of_a_class() -> None:
    features, classes = normal(30, 4, 0) + 5, torch.arange(30) % 3
    pairs = [
        float((features[i] - features[j]).square().sum()) / 2
        for label in range(3)
        for i in range(label, 30, 3)
        for j in range(label, 30, 3)
        if i != j
    ]
    assert float(spread(features, classes).mean()) == pytest.approx(np.mean(pairs))


def test_a_generator_of_one_image_a_class_has_no_spread() -> None:
    one_a_class = normal(3, 4, 0)[torch.arange(30) % 3]
    assert spread(one_a_class, torch.arange(30) % 3).max() < 1e-12


def test_what_they_are_not_defined_on_is_refused() -> None:
    with pytest.raises(MetricInputError, match=r"expected float images \(B, C, H, W\), got torch.uint8"):
        sharpness(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(MetricInputError, match="expected two images of a class, got one of each"):
        spread(normal(3, 2, 0), torch.arange(3))
