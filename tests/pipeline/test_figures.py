"""Figures for a person: every one that an evaluation gives has words, and numbers keep four digits."""

import pytest

from pipeline.artifacts import Figure
from pipeline.figures import FIGURES, grouped, interval, meaning, number
from trainers.evaluation import copying, figures, likelihood


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.655, "0.6550"), (30.0, "30"), (1.0, "1"), (0.0, "0"), (12345.6, "12,346"), (-0.0096519, "-0.009652"),
        (0.0000123456, "1.235e-05"), (123.456, "123.5"), (-2500000.0, "-2,500,000"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_every_figure_of_an_evaluation_has_words() -> None:
    assert figures.UNITS.keys() | copying.UNITS.keys() | set(likelihood.BITS.values()) <= FIGURES.keys()


def test_groups_are_in_the_order_of_reading_and_what_is_unknown_comes_last() -> None:
    one = Figure(value=1.0, unit="share", num_samples=9, low=0.5, high=2.25)
    found = grouped(dict.fromkeys(("rate", "zeal", "recall", "precision", "own_thing"), one))
    assert [(group, list(names)) for group, names in found.items()] == [
        ("Close to real images", ["precision", "recall"]),
        ("Likelihood of real images", ["rate"]),
        ("Others", ["own_thing", "zeal"]),
    ]
    assert meaning("own_thing").title == "Own thing" and interval(one) == "0.5000 to 2.250"
    assert interval(one.model_copy(update={"low": None})) == ""
