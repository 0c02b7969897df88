"""What holds for every figure of two sets of features."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.errors import UserError
from tests.trainers.metrics.sets import normal, two_sets
from trainers.metrics import distances, intervals
from trainers.metrics.checks import MetricInputError
from trainers.metrics.frechet import frechet_distance
from trainers.metrics.kernel import kernel_distance
from trainers.metrics.neighbours import neighbourhoods

TwoSets = Callable[[Tensor, Tensor], float]
FIGURES: dict[str, TwoSets] = {
    "frechet_distance": frechet_distance,
    "kernel_distance": kernel_distance,
    "precision": lambda real, fake: neighbourhoods(real, fake).precision,
    "recall": lambda real, fake: neighbourhoods(real, fake).recall,
    "density": lambda real, fake: neighbourhoods(real, fake).density,
    "coverage": lambda real, fake: neighbourhoods(real, fake).coverage,
}
every_figure = pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES.keys())


def test_identical_sets() -> None:
    real, _ = two_sets()
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(real, real.clone()) < 0.05
    found = neighbourhoods(real, real.clone(), density_k=5)
    assert (found.precision, found.recall, found.coverage) == (1.0, 1.0, 1.0)
    assert found.density == pytest.approx(6 / 5)  # k neighbours and itself


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
    monkeypatch.setattr(distances, "BLOCK_BYTES", 1)  # one row at a time
    assert figure(real, fake) == pytest.approx(whole, rel=1e-12)


@every_figure
def test_figures_take_float32_features_far_from_the_origin(figure: TwoSets) -> None:
    real, fake = (x.float() + 100 for x in two_sets())
    assert figure(real, fake) == pytest.approx(figure(real.double(), fake.double()), rel=1e-12)


def test_memory_does_not_grow_with_the_square_of_the_rows() -> None:
    # 8,000 x 8,000 distances in float64 are 488 MiB; in a process of its own, whose peak is its own.
    script = """
import resource, torch
from trainers.metrics.kernel import kernel_distance
from trainers.metrics.neighbours import neighbourhoods
def peak_mib(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
torch.set_num_threads(1)
real, fake = torch.randn(2, 8_000, 8, dtype=torch.float64)
for warm_up in (kernel_distance, neighbourhoods): warm_up(real[:100], fake[:100])
before = peak_mib()
for figure in (kernel_distance, neighbourhoods): figure(real, fake)
print(peak_mib() - before)
"""
    grown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(grown.stdout) < 244


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
    with pytest.raises(MetricInputError, match="expected 4 rows of fake features or more, got 3"):
        neighbourhoods(real, fake[:3], k=3)
    with pytest.raises(MetricInputError, match="expected 6 rows of real features or more, got 5"):
        neighbourhoods(real[:5], fake, density_k=5)
    with pytest.raises(MetricInputError, match="expected 2 rows of values or more, got 1"):
        intervals.mean(torch.ones(1), seed=0)
    with pytest.raises(MetricInputError, match="expected 4 rows of fake or more, got 3"):
        intervals.subsampled(lambda *sets: [frechet_distance(*sets)], real, fake[:3], seed=0)
    with pytest.raises(MetricInputError, match="neighbours of 1 or more, got 0"):
        neighbourhoods(real, fake, k=0)


def test_errors_are_the_users_and_one_line() -> None:
    with pytest.raises(UserError) as caught:
        frechet_distance(torch.zeros(1, 2), torch.zeros(5, 2))
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
