"""The Frechet distance against scipy and closed forms; streamed moments; the extrapolation."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from tests.trainers.metrics.sets import normal, two_sets
from trainers.metrics import frechet
from trainers.metrics.checks import MetricInputError
from trainers.metrics.frechet import Moments, estimate, frechet_distance, num_groups


def frechet_by_sqrtm(real_ND: Tensor, fake_MD: Tensor) -> float:
    real, fake = real_ND.numpy(), fake_MD.numpy()
    real_cov, fake_cov = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = sqrtm(real_cov @ fake_cov).real
    shift = real.mean(0) - fake.mean(0)
    return float(shift @ shift + np.trace(real_cov + fake_cov - 2 * root))


@pytest.mark.parametrize("width", [1, 6, 40])
def test_frechet_distance_is_that_of_the_matrix_square_root(width: int) -> None:
    real, fake = two_sets(300, width)
    expected = frechet_by_sqrtm(real, fake) if width > 1 else frechet_1d(real, fake)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)


def frechet_1d(real: Tensor, fake: Tensor) -> float:
    return float((real.mean() - fake.mean()) ** 2 + (real.std() - fake.std()) ** 2)


def test_frechet_distance_of_gaussians_with_known_moments() -> None:
    # Whitened samples have exactly these moments: commuting covariances give sum of (s1 - s2)^2 + |m1 - m2|^2.
    def exactly(scale: list[float], shift: float, seed: int) -> Tensor:
        x = normal(500, 3, seed)
        x = x - x.mean(0)
        whitening = torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (len(x) - 1))).T
        moved: Tensor = x @ whitening * torch.tensor(scale, dtype=torch.float64) + shift
        return moved

    real, fake = exactly([1.0, 2.0, 3.0], 0.0, 0), exactly([1.0, 2.5, 1.0], 0.5, 1)
    assert frechet_distance(real, fake) == pytest.approx(0.5**2 + 2.0**2 + 3 * 0.5**2, rel=1e-10)


def test_frechet_distance_with_fewer_rows_than_features() -> None:
    # By the eigenvalues of the product: scipy's sqrtm is not reliable for singular matrices.
    real, fake = two_sets(20, 50)
    real_cov, fake_cov = torch.cov(real.T), torch.cov(fake.T)
    roots = torch.linalg.eigvals(real_cov @ fake_cov).real.clamp(min=0).sqrt().sum()
    shift = (real.mean(0) - fake.mean(0)).square().sum()
    expected = float(shift + real_cov.trace() + fake_cov.trace() - 2 * roots)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_takes_features_that_are_constant_or_copies() -> None:
    real, fake = two_sets(200, 6)
    padded = [torch.cat([x, torch.full((len(x), 4), 3.0, dtype=x.dtype)], 1) for x in (real, fake)]
    assert frechet_distance(*padded) == pytest.approx(frechet_distance(real, fake), rel=1e-7)
    twice = [torch.cat([x, x], 1) for x in (real, fake)]
    assert frechet_distance(*twice) == pytest.approx(2 * frechet_distance(real, fake), rel=1e-6)


# Moments


@pytest.mark.parametrize("cuts", [[], [1], [40, 41, 99]])
def test_moments_are_those_of_all_rows_however_they_come(cuts: list[int]) -> None:
    x_ND, _ = two_sets(100)
    streamed = Moments.none(6)
    for part in x_ND.float().tensor_split(cuts):
        streamed = streamed.with_rows(part + 1000)
    whole = streamed.whole()
    moved = (x_ND.float() + 1000).double()
    torch.testing.assert_close(whole.means_RD[0], moved.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(whole.covariances_RDD[0], torch.cov(moved.T), rtol=1e-9, atol=1e-12)
    assert streamed.count == 100


def test_unions_of_groups_have_the_moments_of_their_rows() -> None:
    x_ND, _ = two_sets(50)
    grouped = Moments.of(x_ND, num_groups=7)
    chosen = torch.tensor([[1.0, 0, 0, 1, 0, 0, 1], [1.0] * 7], dtype=torch.float64)
    parts = x_ND.tensor_split(7)
    found = grouped.pooled(chosen)
    for at, rows in enumerate((torch.cat([parts[0], parts[3], parts[6]]), x_ND)):
        torch.testing.assert_close(found.means_RD[at], rows.mean(0))
        torch.testing.assert_close(found.covariances_RDD[at], torch.cov(rows.T))


def test_the_number_of_groups_bounds_their_memory() -> None:
    assert num_groups(1_000, 64) == 32
    assert num_groups(9, 64) == 4
    assert 8 <= num_groups(10**9, 2048) <= 16


# Intervals and the extrapolation


def truth(width: int) -> float:
    return width * (0.2**2 + 0.1**2)


def sets(rows: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    return normal(rows, width, 2 * seed), 0.1 + 0.8 * normal(2 * rows, width, 2 * seed + 1)


def estimates(rows: int, width: int, repeats: int) -> list[tuple[float, bool, float, bool]]:
    found = []
    for seed in range(repeats):
        real, fake = (Moments.of(x, num_groups(len(x), width)) for x in sets(rows, width, seed))
        both = estimate(real, fake, seed, num_parts=100)
        covers = [one.low <= truth(width) <= one.high for one in (both.distance, both.unbiased)]
        found.append((both.distance.value, covers[0], both.unbiased.value, covers[1]))
    return found


def test_the_extrapolation_takes_off_the_bias_of_few_images() -> None:
    values = np.array(estimates(300, 32, 20))
    assert values[:, 0].mean() > 1.5 * truth(32)  # 300 images of 32 features
    assert values[:, 2].mean() == pytest.approx(truth(32), rel=0.05)


def test_its_interval_covers_the_true_distance_as_often_as_it_says() -> None:
    values = np.array(estimates(400, 4, 120))
    assert 0.88 <= values[:, 3].mean() <= 0.99


def test_intervals_of_the_distance_cover_its_own_mean() -> None:
    found = []
    values = [frechet_distance(*sets(200, 8, seed)) for seed in range(100)]
    for seed in range(100):
        real, fake = (Moments.of(x, num_groups(len(x), 8)) for x in sets(200, 8, seed))
        distance = estimate(real, fake, seed, num_parts=100).distance
        assert distance.value == pytest.approx(values[seed])
        found.append(distance.low <= np.mean(values) <= distance.high)
    assert 0.88 <= np.mean(found) <= 0.99


def test_estimates_of_equal_distributions_include_zero_when_extrapolated() -> None:
    both = estimate(Moments.of(normal(1_000, 16, 0), 32), Moments.of(normal(1_000, 16, 1), 32), seed=0)
    assert both.distance.low > 0
    assert both.unbiased.low < 0 < both.unbiased.high
    assert abs(both.unbiased.value) < 0.3 * both.distance.value


def test_estimates_depend_on_their_seed_only() -> None:
    real, fake = (Moments.of(x, 8) for x in two_sets(40))
    first = estimate(real, fake, 0)
    torch.randn(3)  # moves the global generator
    assert estimate(real, fake, 0) == first != estimate(real, fake, 1)


def test_wide_features_are_resampled_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = (Moments.of(x, 8) for x in two_sets(40))
    whole = estimate(real, fake, 0, num_parts=1)
    monkeypatch.setattr("trainers.metrics.frechet.RESAMPLE_VALUES", 1)
    assert estimate(real, fake, 0, num_parts=1) == whole


# Bad input


def test_moments_refuse_what_they_cannot_take() -> None:
    with pytest.raises(MetricInputError, match="expected finite features, got NaN or infinity in 1 of 2 rows"):
        Moments.none(2).with_rows(torch.tensor([[0.0, torch.nan], [1.0, 1.0]]))
    with pytest.raises(MetricInputError, match="expected 4 rows of real features or more, got 3"):
        estimate(Moments.of(normal(3, 2, 0)), Moments.of(normal(8, 2, 1)), 0)
    with pytest.raises(MetricInputError, match=r"of one size, got 2 and 3; .*same extractor"):
        frechet_distance(normal(5, 2, 0), normal(5, 3, 0))


def test_wide_and_narrow_rows_have_the_same_scatter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes of columns, the last one narrower, against one product."""
    x_ND = normal(90, 70, 3)
    whole = Moments.of(x_ND)
    monkeypatch.setattr(frechet, "WIDE_FEATURES", 8)
    monkeypatch.setattr(frechet, "SCATTER_COLUMNS", 16)
    torch.testing.assert_close(Moments.of(x_ND).scatters_GDD, whole.scatters_GDD, rtol=1e-12, atol=1e-12)


def test_a_regular_covariance_and_one_near_singular_are_rooted_to_the_same_distance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, fake = two_sets(300, 30)
    by_cholesky = frechet_distance(real, fake)
    monkeypatch.setattr(frechet, "LEAST_PIVOT", 1.0)  # nothing is regular enough: by eigenvalues
    assert frechet_distance(real, fake) == pytest.approx(by_cholesky, rel=1e-11)
    monkeypatch.undo()
    flat, other = real.clone(), fake.clone()
    flat[:, 3], other[:, 3] = flat[:, 4] * (1 + 1e-9 * normal(300, 1, 9)[:, 0]), other[:, 4]
    kept = [column for column in range(30) if column != 3]
    kept_real, kept_fake = flat[:, kept].clone(), other[:, kept].clone()
    for x in (kept_real, kept_fake):
        x[:, 3] *= 2**0.5  # one column with the variance of two equal ones
    assert frechet_distance(flat, other) == pytest.approx(frechet_distance(kept_real, kept_fake), rel=1e-5)
