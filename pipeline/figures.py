"""Figures for a person: what each is called, which way is better, and how its number is written."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pipeline.artifacts import Figure

Better = Literal["lower", "higher", "near the real images'", ""]
Group = Literal["Close to real images", "Classes", "Copies of training images", "Likelihood of real images", "Others"]


class Meaning(NamedTuple):
    """A figure in words; `better` is empty where neither way is."""

    title: str
    better: Better
    group: Group


# In the order that they are read in.
FIGURES: dict[str, Meaning] = {
    "frechet_distance": Meaning("Fréchet distance", "lower", "Close to real images"),
    "frechet_distance_unbiased": Meaning("Fréchet distance, unbiased", "lower", "Close to real images"),
    "kernel_distance": Meaning("Kernel distance", "lower", "Close to real images"),
    "precision": Meaning("Precision", "higher", "Close to real images"),
    "recall": Meaning("Recall", "higher", "Close to real images"),
    "density": Meaning("Density", "higher", "Close to real images"),
    "coverage": Meaning("Coverage", "higher", "Close to real images"),
    "told_apart": Meaning("Told apart from real", "lower", "Close to real images"),
    "sharpness": Meaning("Sharpness", "near the real images'", "Close to real images"),
    "diversity": Meaning("Diversity", "near the real images'", "Close to real images"),
    "label_agreement": Meaning("Label agreement", "higher", "Classes"),
    "class_histogram_distance": Meaning("Class histogram distance", "lower", "Classes"),
    "near_copies": Meaning("Near copies", "lower", "Copies of training images"),
    "authenticity": Meaning("Authenticity", "higher", "Copies of training images"),
    "copying_score": Meaning("Copying score", "near the real images'", "Copies of training images"),
    "negative_elbo": Meaning("Negative ELBO", "lower", "Likelihood of real images"),
    "negative_elbo_bits": Meaning("Negative ELBO, bits", "lower", "Likelihood of real images"),
    "negative_log_likelihood": Meaning("Negative log-likelihood", "lower", "Likelihood of real images"),
    "negative_log_likelihood_bits": Meaning("Negative log-likelihood, bits", "lower", "Likelihood of real images"),
    "rate": Meaning("Rate", "", "Likelihood of real images"),
    "distortion": Meaning("Distortion", "lower", "Likelihood of real images"),
    "active_units": Meaning("Active units", "", "Likelihood of real images"),
}


def meaning(name: str) -> Meaning:
    """What is known of a figure; another's name is its title."""
    return FIGURES.get(name) or Meaning(title_of(name), "", "Others")


def title_of(name: str) -> str:
    """A figure's name as a person writes it."""
    return FIGURES[name].title if name in FIGURES else name.replace("_", " ").capitalize()


def grouped(figures: Mapping[str, Figure]) -> dict[Group, dict[str, Figure]]:
    """Figures in the order that they are read in, by group; those that are not known here last, by name."""
    order = [*(name for name in FIGURES if name in figures), *sorted(figures.keys() - FIGURES.keys())]
    found: dict[Group, dict[str, Figure]] = {}
    for name in order:
        found.setdefault(meaning(name).group, {})[name] = figures[name]
    return found


def number(value: float) -> str:
    """Four significant digits, whole numbers as they are: 0.6550, 30, 12,345, 1.234e-05."""
    if not math.isfinite(value):
        return str(value)
    if (value == round(value) and abs(value) < 1e4) or abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:#.4g}"


def interval(figure: Figure) -> str:
    """The 95% interval; empty where none was computed."""
    return "" if figure.low is None or figure.high is None else f"{number(figure.low)} to {number(figure.high)}"
