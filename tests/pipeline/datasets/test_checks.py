"""Checks of a dataset: each fails with its figure, and says what to do."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Dataset, Rejected, Statistics
from pipeline.datasets.checks import failures, label_drift, pixel_drift, refuse
from pipeline.errors import SourceError
from pipeline.ingest import ingest
from pipeline.sections import ChecksSpec
from pipeline.store import open_store
from tests.pipeline.test_ingest import folder_of, of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("checked")
    return ingest(open_store(f"file://{folder}/store"), of(folder_of(folder / "raw", 40)))


def with_statistics(dataset: Dataset, **fields: Any) -> Dataset:
    changed = dataset.statistics.model_dump() | fields
    return dataset.model_copy(update={"statistics": Statistics.model_validate(changed)})


def test_a_sound_dataset_passes(dataset: Dataset) -> None:
    strict = ChecksSpec(min_images=40, min_images_per_class=20, max_label_drift=0, max_pixel_drift=0)
    assert failures(dataset, dataset, strict) == []


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({"min_images": 41}, r"expected 41 images or more \(checks.min_images\), got 40; add"),
        (
            {"min_images_per_class": 21},
            r"expected 21 images .*of each class .* got 20 of class0, 20 of class1; add",
        ),
    ],
)
def test_each_check_says_its_figure(dataset: Dataset, checks: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        refuse(dataset, None, ChecksSpec.model_validate(checks))


def test_several_failures_are_one_line(dataset: Dataset) -> None:
    with pytest.raises(SourceError, match=r"checks.min_images.*; .*min_images_per_class") as caught:
        refuse(dataset, None, ChecksSpec(min_images=100, min_images_per_class=100))
    assert "\n" not in str(caught.value)


def test_rejects_are_counted_and_the_first_named(dataset: Dataset) -> None:
    rejected = tuple(Rejected(name=f"{number}.png", reason="damaged") for number in range(5))
    some = dataset.model_copy(update={"rejected": rejected, "num_rejected": 5, "num_inputs": 1_000})
    assert failures(some, None, ChecksSpec(max_rejected=0.005)) == []
    (line,) = failures(some, None, ChecksSpec(max_rejected=0.0049))
    assert "of 1,000 inputs to be rejected, got 5 (0.png: damaged; 1.png: damaged; 2.png: damaged)" in line
    assert line.endswith("mend or remove them, or raise checks.max_rejected (0.0049)")


@pytest.mark.parametrize("splits", [{"test": 1, "train": 40}, {"test": 40, "train": 0}, {}])
def test_each_split_needs_two_images(dataset: Dataset, splits: dict[str, int]) -> None:
    lines = failures(dataset.model_copy(update={"splits": splits}), None, ChecksSpec())
    assert any("2 different images or more in each split" in line or "checks.min_images" in line for line in lines)


def test_only_the_first_small_classes_are_named(dataset: Dataset) -> None:
    many = dataset.model_copy(update={"classes": tuple(f"class{number}" for number in range(12))})
    (line,) = failures(many, None, ChecksSpec())
    assert "got 0 of class2, 0 of class3, 0 of class4 and 7 more" in line
    assert failures(many, None, ChecksSpec(min_images_per_class=0)) == []


def test_labels_that_come_or_go_are_the_largest_drift(dataset: Dataset) -> None:
    unlabelled = with_statistics(dataset, labels={"test": {}, "train": {}})
    assert (label_drift(unlabelled, dataset), label_drift(dataset, unlabelled)) == (1, 1)
    assert label_drift(unlabelled, unlabelled) == 0


def test_drift_of_the_worst_channel_counts_and_a_flat_parent_counts_in_pixel_values(dataset: Dataset) -> None:
    before = with_statistics(dataset, mean=(100, 50, 7), std=(10, 20, 0))
    assert pixel_drift(with_statistics(dataset, mean=(105, 90, 7), std=(1, 1, 1)), before) == 2
    assert pixel_drift(with_statistics(dataset, mean=(100, 50, 10), std=(1, 1, 1)), before) == 3


def test_without_a_parent_or_a_threshold_nothing_drifts(dataset: Dataset) -> None:
    moved = with_statistics(dataset, mean=(0,), labels={"train": {"class0": 40}, "test": {}})
    free = {"min_images_per_class": 0}
    assert failures(moved, dataset, ChecksSpec.model_validate(free)) == []
    strict = ChecksSpec.model_validate(free | {"max_label_drift": 0, "max_pixel_drift": 0})
    assert failures(moved, None, strict) == []
    assert len(failures(moved, dataset, strict)) == 2


def test_label_drift_is_the_total_variation_distance(dataset: Dataset) -> None:
    moved = with_statistics(dataset, labels={"train": {"class0": 10, "class1": 20}, "test": {"class2": 10}})
    assert label_drift(moved, dataset) == pytest.approx(0.5 * (abs(0.25 - 0.5) + 0 + 0.25))
    assert label_drift(dataset, moved) == label_drift(moved, dataset)
    assert failures(moved, dataset, ChecksSpec(max_label_drift=0.25, min_images_per_class=0)) == []
    (line,) = failures(moved, dataset, ChecksSpec(max_label_drift=0.2, min_images_per_class=0))
    assert "total variation distance" in line and "got 0.25;" in line and "checks.max_label_drift" in line


def test_pixel_drift_is_in_the_parents_deviations(dataset: Dataset) -> None:
    (mean,), (std,) = dataset.statistics.mean, dataset.statistics.std
    moved = with_statistics(dataset, mean=(mean + std / 2,))
    assert pixel_drift(moved, dataset) == pytest.approx(0.5)
    assert failures(moved, dataset, ChecksSpec(max_pixel_drift=0.6)) == []
    (line,) = failures(moved, dataset, ChecksSpec(max_pixel_drift=0.4))
    assert "standard deviations" in line and "got 0.5;" in line
