"""Each figure against an independent computation: closed forms, scipy, and the papers' definitions spelled out."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from pipeline.errors import UserError
from trainers import metrics
from trainers.metrics import (
    MetricInputError,
    bootstrap_interval,
    class_histogram_distance,
    density_coverage,
    frechet_distance,
    half_sample_interval,
    kernel_distance,
    kernel_distance_interval,
    label_agreement,
    precision_recall,
)

TwoSets = Callable[[Tensor, Tensor], float]
FIGURES: dict[str, TwoSets] = {
    "frechet_distance": frechet_distance,
    "kernel_distance": kernel_distance,
    "precision": lambda real, fake: precision_recall(real, fake, k=3).precision,
    "recall": lambda real, fake: precision_recall(real, fake, k=3).recall,
    "density": lambda real, fake: density_coverage(real, fake, k=5).density,
    "coverage": lambda real, fake: density_coverage(real, fake, k=5).coverage,
}
every_figure = pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES.keys())


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_sets(rows: int = 150, width: int = 6) -> tuple[Tensor, Tensor]:
    """Overlapping clouds of different shape and size, neither inside the other."""
    mix = normal(width, width, 2) / width**0.5
    return normal(rows, width, 0), 0.4 + normal(rows + 37, width, 1) @ (mix + 0.6 * torch.eye(width))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 rows or so, so that small sets are cut into many, the last one shorter."""
    monkeypatch.setattr(metrics, "BLOCK_BYTES", 7 * 8 * 187)


# Frechet distance


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


# Kernel distance


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
    expected = half_sample_interval(kernel_distance, real, fake, seed=5, num_resamples=40)
    assert kernel_distance_interval(real, fake, seed=5, num_resamples=40) == pytest.approx(expected, rel=1e-9)


# Nearest neighbours


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
    found = precision_recall(real, fake, k)
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
    found = density_coverage(real, fake, k)
    assert found.density == pytest.approx(float(inside.sum()) / (k * len(fake)))
    assert found.coverage == pytest.approx(float(inside.any(1).double().mean()))
    assert 0.05 < found.coverage < 0.95


def test_swapping_the_sets_swaps_precision_and_recall() -> None:
    real, fake = two_sets()
    forth, back = precision_recall(real, fake), precision_recall(fake, real)
    assert (forth.precision, forth.recall) == (back.recall, back.precision)


def test_dropped_mode_costs_recall_and_stray_samples_cost_precision() -> None:
    left, right = normal(200, 4, 0), normal(200, 4, 1) + 20
    both = torch.cat([left, right])
    dropped = precision_recall(both, normal(200, 4, 2))
    assert dropped.precision > 0.8
    assert dropped.recall < 0.5
    stray = precision_recall(left, torch.cat([normal(100, 4, 3), right[:100]]))
    assert stray.precision < 0.6
    assert density_coverage(both, normal(200, 4, 2)).coverage < 0.55


@pytest.mark.parametrize("width", [8, 64])
def test_copies_lie_in_the_ball_of_radius_zero_of_their_twins(width: int) -> None:
    real = torch.cat([normal(30, width, 0)] * 2)  # k = 1: every radius is 0
    fake = torch.cat([real[7:30]] * 2)
    found = precision_recall(real, fake, k=1)
    assert found.precision == 1.0
    assert found.recall == 2 * 23 / 60
    assert density_coverage(real, fake, k=1) == metrics.DensityCoverage(density=2.0, coverage=2 * 23 / 60)


# What holds for all of them


def test_identical_sets() -> None:
    real, _ = two_sets()
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(real, real.clone()) < 0.05
    assert precision_recall(real, real.clone()) == metrics.PrecisionRecall(1.0, 1.0)
    assert density_coverage(real, real.clone()).coverage == 1.0
    assert density_coverage(real, real.clone(), k=5).density == pytest.approx(6 / 5)  # k neighbours and itself


@every_figure
def test_figures_do_not_depend_on_the_order_of_rows(figure: TwoSets) -> None:
    real, fake = two_sets()
    assert figure(real.flip(0), fake.roll(11, 0)) == pytest.approx(figure(real, fake), rel=1e-9)


@every_figure
def test_figures_do_not_depend_on_a_rotation_of_the_features(figure: TwoSets) -> None:
    real, fake = two_sets()
    rotation = torch.linalg.qr(normal(6, 6, 9)).Q
    assert figure(real @ rotation, fake @ rotation) == pytest.approx(figure(real, fake), rel=1e-9)


@every_figure
def test_figures_do_not_depend_on_the_size_of_blocks(figure: TwoSets, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = two_sets()
    whole = figure(real, fake)
    monkeypatch.setattr(metrics, "BLOCK_BYTES", 1)  # one row at a time
    assert figure(real, fake) == pytest.approx(whole, rel=1e-12)


@every_figure
def test_figures_take_float32_features_far_from_the_origin(figure: TwoSets) -> None:
    real, fake = (x.float() + 100 for x in two_sets())
    assert figure(real, fake) == pytest.approx(figure(real.double(), fake.double()), rel=1e-12)


def test_memory_does_not_grow_with_the_square_of_the_rows() -> None:
    # 8,000 x 8,000 distances in float64 are 488 MiB; in a process of its own, whose peak is its own.
    script = """
import resource, torch
from trainers.metrics import density_coverage, kernel_distance, precision_recall
def peak_mib(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
torch.set_num_threads(1)
real, fake = torch.randn(2, 8_000, 8, dtype=torch.float64)
for warm_up in (kernel_distance, precision_recall, density_coverage): warm_up(real[:100], fake[:100])
before = peak_mib()
for figure in (kernel_distance, precision_recall, density_coverage): figure(real, fake)
print(peak_mib() - before)
"""
    grown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(grown.stdout) < 244


# Classes


def test_class_histogram_distance_is_the_total_variation() -> None:
    real, fake = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1, 1, 1, 1, 1])
    assert class_histogram_distance(real, fake, 4) == pytest.approx((3 / 8 + 5 / 8 + 1 / 4) / 2)
    assert class_histogram_distance(real, real.repeat(3), 4) == 0
    assert class_histogram_distance(torch.zeros(3, dtype=torch.int64), torch.ones(5, dtype=torch.int64), 2) == 1


def test_label_agreement_says_which_samples_were_read_as_asked() -> None:
    assert label_agreement(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 0, 3])).tolist() == [1, 1, 0, 1]


# Intervals


def covered(intervals: list[tuple[float, float]], truth: float) -> float:
    return sum(low <= truth <= high for low, high in intervals) / len(intervals)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    values = torch.randn(300, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    intervals = [bootstrap_interval(row, seed=i, num_resamples=300) for i, row in enumerate(values)]
    assert 0.87 <= covered(intervals, float(np.exp(0.5))) <= 0.98


def test_half_sample_interval_covers_a_difference_of_means_as_often_as_it_says() -> None:
    def difference(real: Tensor, fake: Tensor) -> float:
        return float(fake.mean() - real.mean())

    intervals = [
        half_sample_interval(difference, normal(60, 1, 2 * i), normal(90, 1, 2 * i + 1) + 0.5, i, num_resamples=100)
        for i in range(300)
    ]
    assert 0.90 <= covered(intervals, 0.5) <= 0.98


def test_kernel_interval_covers_the_true_distance_as_often_as_it_says() -> None:
    intervals = [
        kernel_distance_interval(normal(80, 3, 2 * i), normal(80, 3, 2 * i + 1) + 0.5, i, num_resamples=100)
        for i in range(200)
    ]
    assert 0.88 <= covered(intervals, kernel_distance_of_shifted_normals(3, 0.5)) <= 0.99


def test_intervals_depend_on_their_seed_only() -> None:
    real, fake = two_sets(40)
    intervals: list[Callable[[int], tuple[float, float]]] = [
        lambda seed: bootstrap_interval(real[:, 0], seed),
        lambda seed: half_sample_interval(frechet_distance, real, fake, seed, num_resamples=50),
        lambda seed: kernel_distance_interval(real, fake, seed, num_resamples=50),
    ]
    for interval in intervals:
        first = interval(0)
        torch.randn(3)  # moves the global generator
        assert interval(0) == first != interval(1)


# Bad input


@every_figure
@pytest.mark.parametrize("side", [0, 1])
def test_features_that_are_not_finite_are_refused(figure: TwoSets, side: int) -> None:
    sets = two_sets()
    sets[side][3, 1], sets[side][5, 0] = torch.nan, torch.inf
    with pytest.raises(MetricInputError, match=r"finite (real|fake) features, got NaN or infinity in 2 of 1\d\d rows"):
        figure(*sets)


@every_figure
def test_features_of_two_sizes_are_refused(figure: TwoSets) -> None:
    real, fake = two_sets()
    with pytest.raises(MetricInputError, match=r"of one size, got 6 and 5; .*same extractor"):
        figure(real, fake[:, :5])


@every_figure
@pytest.mark.parametrize("shape", [(150,), (150, 2, 3), (150, 0)])
def test_features_of_another_rank_are_refused(figure: TwoSets, shape: tuple[int, ...]) -> None:
    real, _ = two_sets()
    with pytest.raises(MetricInputError, match=r"expected fake features \(N, D\), got the shape"):
        figure(real, torch.zeros(shape))


def test_too_few_rows_are_refused() -> None:
    real, fake = two_sets()
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(MetricInputError, match="expected 2 rows of fake features or more, got 1"):
            distance(real, fake[:1])
    with pytest.raises(MetricInputError, match="expected 4 rows of real features or more, got 3"):
        precision_recall(real[:3], fake, k=3)
    with pytest.raises(MetricInputError, match="expected 6 rows of real features or more, got 5"):
        density_coverage(real[:5], fake, k=5)
    assert density_coverage(real, fake[:1], k=5).coverage <= 1
    with pytest.raises(MetricInputError, match="expected 2 rows of values or more, got 1"):
        bootstrap_interval(torch.ones(1), seed=0)
    with pytest.raises(MetricInputError, match="expected 4 rows of fake or more, got 3"):
        half_sample_interval(frechet_distance, real, fake[:3], seed=0)
    with pytest.raises(MetricInputError, match="neighbours of 1 or more, got 0"):
        precision_recall(real, fake, k=0)


def test_classes_out_of_range_are_refused() -> None:
    with pytest.raises(MetricInputError, match=r"expected fake classes .* in \[0, 3\), got \[0, 3\]"):
        class_histogram_distance(torch.tensor([0, 1]), torch.tensor([0, 3]), 3)
    with pytest.raises(MetricInputError, match="got none"):
        class_histogram_distance(torch.empty(0, dtype=torch.int64), torch.tensor([0]), 3)
    with pytest.raises(MetricInputError, match="label agreement"):
        label_agreement(torch.tensor([1, 2]), torch.tensor([1]))


def test_errors_are_the_users_and_one_line() -> None:
    with pytest.raises(UserError) as caught:
        frechet_distance(torch.zeros(1, 2), torch.zeros(5, 2))
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
