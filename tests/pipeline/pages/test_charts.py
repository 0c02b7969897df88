"""Where the marks stand, and which directions move an image."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.artifacts import Figure
from pipeline.latents import latents
from pipeline.pages import charts, drawn


def figure(value: float, low: float | None = None, high: float | None = None, floor: float | None = None) -> Figure:
    return Figure(value=value, low=low, high=high, floor=floor, unit="u", num_samples=1)


def test_a_row_places_dots_and_whiskers_on_one_scale() -> None:
    (row,) = charts.rows({"recall": figure(2, 1, 3, floor=5)}, {"recall": figure(4, 3, 4.5)})
    assert row.rival is not None and row.floor is not None
    assert row.own.start == charts.MARGIN_PERCENT and row.floor == 100 - charts.MARGIN_PERCENT
    assert row.own.start < row.own.at < row.own.end == row.rival.start < row.rival.at < row.rival.end < row.floor
    assert row.own.at == pytest.approx((row.own.start + row.own.end) / 2)
    assert row.own.text == "2 (1 to 3)" and row.better == "higher is better"


def test_a_figure_without_an_interval_is_a_dot_in_the_middle() -> None:
    (row,) = charts.rows({"what_is_it": figure(-0.5)}, None)
    assert (row.own.start, row.own.at, row.own.end) == (50, 50, 50)
    assert row.name == "What is it" and row.own.text == "\N{MINUS SIGN}0.5"


def test_what_is_no_number_has_no_mark() -> None:
    rows = charts.rows({"recall": figure(math.nan), "precision": figure(1)}, {"precision": figure(math.inf)})
    assert [row.name for row in rows] == ["Precision"] and rows[0].rival is None


def test_a_curve_spans_its_box_and_shows_losses_first() -> None:
    lines = [{"step": 10.0, "a/rate": 1.0, "a/loss": 8.0}, {"step": 20.0, "a/rate": math.nan, "a/loss": 2.0},
             {"step": 30.0, "a/rate": 2.0, "a/loss": 4.0}]  # fmt: skip
    loss, rate = charts.curves(lines)
    assert (loss.name, rate.name) == ("a/loss", "a/rate")
    assert loss.points == "0.0,0.0 160.0,120.0 320.0,80.0 320.0,80.0"
    assert rate.points.startswith("0.0,120.0 320.0,0.0") and rate.last == "2"


class Linear:
    """A sampler whose image moves with one direction of its latents and with nothing else."""

    latent_size = 12
    direction = np.eye(12, dtype=np.float32)[3] * 0.6 + np.eye(12, dtype=np.float32)[7] * 0.8

    def images(self, seeds: range, labels: list[int]) -> NDArray[np.uint8]:
        strength = latents(seeds, self.latent_size) @ self.direction
        pixels = 128 + 30 * strength[:, None] * np.ones((1, 16)) + 40 * np.array(labels)[:, None]
        images: NDArray[np.uint8] = np.rint(pixels).clip(0, 255).astype(np.uint8).reshape(-1, 4, 4, 1)
        return images


def test_the_first_direction_is_the_one_that_moves_the_image() -> None:
    found = drawn.directions(Linear(), 2)  # type: ignore[arg-type]  # it has all that is called
    assert found.shape == (1, 12)  # there is no second one, and a slider that does nothing is none
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)
    assert abs(float(found[0] @ Linear.direction)) > 0.95
