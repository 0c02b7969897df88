"""Real images in the samples' place score about the floor; damaged ones do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.artifacts import Figure
from tests.trainers.evaluation.conftest import Seen
from trainers.evaluation.figures import UNITS, sample_figures
from trainers.evaluation.measured import Measured, groups_of, images_of, joined, measure_group, measure_real
from trainers.readers import Reader

ROWS = 600


def measured(seen: Seen, images: torch.Tensor, classes: torch.Tensor) -> Measured:
    every = np.arange(len(images))
    return joined(
        [
            measure_group([(images[part.start : part.stop], classes[part.start : part.stop])], part, every, seen.eyes)
            for part in groups_of(len(images), seen.eyes.width)
        ]
    )


def real(seen: Seen) -> Measured:
    return measure_real(seen.test, np.arange(sum(seen.test.shard_sizes)), seen.eyes)


def some(reader: Reader, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    ((images, labels),) = images_of(reader, np.arange(start, start + ROWS), batch_size=ROWS)
    return images, labels


@pytest.fixture(scope="module")
def honest(seen: Seen) -> dict[str, Figure]:
    anchor, made = (measured(seen, *some(seen.training, start)) for start in (0, ROWS))
    return sample_figures(real(seen), made, anchor, 10, seed=0)


def test_every_figure_has_an_interval_about_its_value_and_a_floor(honest: dict[str, Figure]) -> None:
    assert honest.keys() == UNITS.keys()
    for name, figure in honest.items():
        assert figure.low is not None and figure.high is not None and figure.floor is not None
        assert figure.low <= figure.value <= figure.high, name
        assert (figure.num_samples, figure.num_real, figure.unit) == (ROWS, 281, UNITS[name])


def test_real_images_in_the_samples_place_score_about_the_floor(honest: dict[str, Figure]) -> None:
    for name, figure in honest.items():
        assert figure.low is not None and figure.high is not None and figure.floor is not None
        slack = 0.5 * (figure.high - figure.low) + 0.01
        assert figure.low - slack <= figure.floor <= figure.high + slack, name
    assert abs(honest["told_apart"].value - 0.5) < 0.07


def test_the_floor_is_the_figure_of_training_images_in_the_samples_place(seen: Seen) -> None:
    anchor = measured(seen, *some(seen.training, 0))
    for name, figure in sample_figures(real(seen), anchor, anchor, 10, seed=0).items():
        if name != "label_agreement":  # its floor is how well the real images' classes are read
            assert figure.floor == pytest.approx(figure.value, rel=1e-9), name


def damaged(seen: Seen, kind: str) -> dict[str, Figure]:
    images, labels = some(seen.training, ROWS)
    if kind == "blur":
        images = torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, 0.8, 0.8)))
    if kind == "dropped classes":
        images, labels = images[labels < 5], labels[labels < 5]
    if kind == "one image a class":
        first = torch.stack([images[labels == label][0] for label in range(10)])
        images = first[labels]
    made = measured(seen, images, labels)
    if kind == "wrong classes":
        made = replace(made, classes_N=(labels + 1) % 10)
    return sample_figures(real(seen), made, measured(seen, *some(seen.training, 0)), 10, seed=0)


def test_each_damage_shows_in_its_figure(seen: Seen, honest: dict[str, Figure]) -> None:
    blurred = damaged(seen, "blur")
    assert blurred["sharpness"].value < 0.7 and honest["sharpness"].value > 0.9
    dropped = damaged(seen, "dropped classes")
    assert dropped["class_histogram_distance"].value > 0.4
    assert dropped["coverage"].value < 0.7 * honest["coverage"].value
    repeated = damaged(seen, "one image a class")
    assert repeated["diversity"].value < 0.01 and repeated["recall"].value < 0.1
    assert damaged(seen, "wrong classes")["label_agreement"].value < 0.1
    for figures in (blurred, dropped, repeated):
        low = figures["frechet_distance_unbiased"].low
        assert low is not None and low > (honest["frechet_distance_unbiased"].high or 0)
        assert figures["told_apart"].value > honest["told_apart"].value + 0.1


def test_without_a_reader_there_are_no_class_figures(seen: Seen) -> None:
    made, anchor = (replace(measured(seen, *some(seen.training, start)), read_N=None) for start in (0, ROWS))
    found = sample_figures(replace(real(seen), read_N=None), made, anchor, 0, seed=0)
    assert UNITS.keys() - found.keys() == {"class_histogram_distance", "label_agreement"}
