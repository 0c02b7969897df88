"""The kernel distance against its definition and a closed form."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainers.metrics.sets import normal, two_sets
from trainers.metrics import kernel
from trainers.metrics.intervals import subsampled
from trainers.metrics.kernel import estimate, kernel_distance


def kernel_by_loops(real: Tensor, fake: Tensor) -> float:
    def k(x: Tensor, y: Tensor) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    n, m = len(real), len(fake)
    within_real = sum(k(real[i], real[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_fake = sum(k(fake[i], fake[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_real + within_fake - 2 * sum(k(x, y) for x in real for y in fake) / (n * m)


@pytest.mark.usefixtures("small_blocks")
def test_kernel_distance_is_the_unbiased_sum_over_pairs() -> None:
    real, fake = two_sets(40)
    assert kernel_distance(real, fake) == pytest.approx(kernel_by_loops(real, fake), rel=1e-10)


def kernel_distance_of_shifted_normals(width: int, shift: float) -> float:
    """Closed form for N(0, 1) against N(shift, 1) in every coordinate, from the moments of x_i y_i."""

    def mean_kernel(m1: float, m2: float, m3: float) -> float:
        d = width
        second = d * m2 + d * (d - 1) * m1**2
        third = d * m3 + 3 * d * (d - 1) * m2 * m1 + d * (d - 1) * (d - 2) * m1**3
        return third / d**3 + 3 * second / d**2 + 3 * m1 + 1

    moved = mean_kernel(shift**2, (1 + shift**2) ** 2, (shift**3 + 3 * shift) ** 2)
    return mean_kernel(0, 1, 0) + moved - 2 * mean_kernel(0, 1 + shift**2, 0)


def test_kernel_distance_of_shifted_normals_is_the_closed_form() -> None:
    values = [kernel_distance(normal(400, 3, 2 * s), normal(400, 3, 2 * s + 1) + 0.5) for s in range(60)]
    assert np.mean(values) == pytest.approx(
        kernel_distance_of_shifted_normals(3, 0.5), abs=3 * np.std(values) / 60**0.5
    )


def test_kernel_distance_of_equal_distributions_is_centred_on_zero() -> None:
    values = torch.tensor([kernel_distance(normal(60, 4, 2 * s), normal(60, 4, 2 * s + 1)) for s in range(200)])
    assert abs(values.mean()) < 3 * values.std() / 200**0.5
    assert values.min() < 0


def test_kernel_interval_in_one_pass_is_the_one_of_halves() -> None:
    real, fake = two_sets(60)
    (expected,) = subsampled(lambda a, b: [kernel_distance(a, b)], real, fake, seed=5, num_parts=40)
    assert astuple(estimate(real, fake, seed=5, num_parts=40)) == pytest.approx(astuple(expected), rel=1e-9)


def test_kernel_interval_covers_the_true_distance_as_often_as_it_says() -> None:
    intervals = [estimate(normal(80, 3, 2 * i), normal(80, 3, 2 * i + 1) + 0.5, i, num_parts=100) for i in range(200)]
    truth = kernel_distance_of_shifted_normals(3, 0.5)
    assert 0.88 <= np.mean([one.low <= truth <= one.high for one in intervals]) <= 0.99


def test_large_sets_in_float32_give_the_same_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = two_sets(500, 300)
    exact, estimated = kernel_distance(real, fake), estimate(real, fake, seed=0, num_parts=20)
    monkeypatch.setattr(kernel, "SINGLE_FROM", 0)
    single = kernel_distance(real, fake)
    assert single != exact and single == pytest.approx(exact, rel=1e-6)  # another way, the same figure
    assert astuple(estimate(real, fake, seed=0, num_parts=20)) == pytest.approx(astuple(estimated), rel=1e-5)


def test_features_whose_kernel_is_beyond_float32_are_not_cut_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = (1e8 * x for x in two_sets(60, 20))
    exact = kernel_distance(real, fake)
    monkeypatch.setattr(kernel, "SINGLE_FROM", 0)
    assert kernel_distance(real, fake) == exact > 1e39
