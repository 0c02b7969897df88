"""What is kept of a set is what its images say, in whatever groups they are measured."""

import numpy as np
import pytest
import torch

from tests.trainers.evaluation.conftest import Seen
from trainers.evaluation import measured
from trainers.evaluation.measured import groups_of, images_of, measure_real, spread_evenly
from trainers.metrics import frechet
from trainers.metrics.appearance import sharpness


def test_kept_images_lie_evenly_over_the_set() -> None:
    assert spread_evenly(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert spread_evenly(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert len(spread_evenly(10**7, 10_000)) == 10_000


def test_groups_are_the_set_whole_and_depend_on_its_size_alone() -> None:
    for num in (2, 3, 63, 64, 1_000, 12_345):
        groups = groups_of(num, width=64)
        assert [row for group in groups for row in group] == list(range(num))
        assert max(len(group) for group in groups) - min(len(group) for group in groups) <= 1
    assert len(groups_of(1_000, 64)) == frechet.MAX_GROUPS


@pytest.mark.parametrize("most", [10_000, 40])
def test_a_set_is_measured_as_its_images_are(seen: Seen, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MAX_KEPT", most)
    monkeypatch.setattr(frechet, "MAX_GROUPS", 2)  # of 300 images, which are more than a batch
    rows = spread_evenly(sum(seen.training.shard_sizes), 600)
    (images, labels), *none = images_of(seen.training, rows, batch_size=600)
    assert not none
    found = measure_real(seen.training, rows, seen.eyes)
    features_ND, read_N = seen.eyes.look(images)
    assert read_N is not None and found.read_N is not None
    kept = spread_evenly(600, most)
    assert found.count == 600 and found.kept_K.tolist() == kept.tolist()
    torch.testing.assert_close(found.features_KD, features_ND[kept], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.classes_N, labels) and torch.equal(found.read_N, read_N)
    assert torch.equal(found.kept_classes, labels[kept])
    torch.testing.assert_close(found.sharpness_N, sharpness(images.float() / 255))
    gaussian = found.moments.whole()
    torch.testing.assert_close(gaussian.covariances_RDD[0], torch.cov(features_ND.double().T), rtol=1e-4, atol=1e-5)


def test_what_is_kept_does_not_grow_with_the_set(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MAX_KEPT", 50)

    def kept_values(rows: int) -> int:
        found = measure_real(seen.training, np.arange(rows), seen.eyes)
        return found.features_KD.numel() + found.moments.scatters_GDD.numel() + found.moments.means_GD.numel()

    assert kept_values(1_000) == kept_values(100)
