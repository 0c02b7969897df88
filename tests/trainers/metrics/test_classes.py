"""Figures from classes against their definitions."""

import pytest
import torch

from trainers.metrics.checks import MetricInputError
from trainers.metrics.classes import class_histogram_distance, label_agreement


def test_class_histogram_distance_is_the_total_variation() -> None:
    real, fake = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1, 1, 1, 1, 1])
    assert class_histogram_distance(real, fake, 4) == pytest.approx((3 / 8 + 5 / 8 + 1 / 4) / 2)
    assert class_histogram_distance(real, real.repeat(3), 4) == 0
    assert class_histogram_distance(torch.zeros(3, dtype=torch.int64), torch.ones(5, dtype=torch.int64), 2) == 1


def test_label_agreement_says_which_samples_were_read_as_asked() -> None:
    assert label_agreement(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 0, 3])).tolist() == [1, 1, 0, 1]


def test_classes_out_of_range_are_refused() -> None:
    with pytest.raises(MetricInputError, match=r"expected fake classes .* in \[0, 3\), got \[0, 3\]"):
        class_histogram_distance(torch.tensor([0, 1]), torch.tensor([0, 3]), 3)
    with pytest.raises(MetricInputError, match="got none"):
        class_histogram_distance(torch.empty(0, dtype=torch.int64), torch.tensor([0]), 3)
    with pytest.raises(MetricInputError, match="label agreement"):
        label_agreement(torch.tensor([1, 2]), torch.tensor([1]))
