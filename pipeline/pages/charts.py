"""Where the marks of a chart stand: pure functions of numbers. The templates draw them.

Positions of a figure's row are percent of its width, so that it stretches with the page; those of a curve are in its
own box of `CURVE_WIDTH` by `CURVE_HEIGHT`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.artifacts import Figure

CURVE_WIDTH, CURVE_HEIGHT = 320, 120
MARGIN_PERCENT = 4.0
CURVE_POINTS = 240  # of a curve, at most: more than its pixels say nothing

Better = Literal["lower is better", "higher is better", "best as of real images", ""]

# The figures in the order that they are read in, in words, and which way is better.
FIGURES: dict[str, tuple[str, Better]] = {
    "frechet_distance": ("Fréchet distance", "lower is better"),
    "frechet_distance_unbiased": ("Fréchet distance, unbiased", "lower is better"),
    "kernel_distance": ("Kernel distance", "lower is better"),
    "precision": ("Precision", "higher is better"),
    "recall": ("Recall", "higher is better"),
    "density": ("Density", "higher is better"),
    "coverage": ("Coverage", "higher is better"),
    "label_agreement": ("Label agreement", "higher is better"),
    "told_apart": ("Told apart from real", "lower is better"),
    "class_histogram_distance": ("Class histogram distance", "lower is better"),
    "sharpness": ("Sharpness", "best as of real images"),
    "diversity": ("Diversity", "best as of real images"),
    "near_copies": ("Near copies", "lower is better"),
    "authenticity": ("Authenticity", "higher is better"),
    "copying_score": ("Copying score", "best as of real images"),
    "negative_elbo": ("Negative ELBO", "lower is better"),
    "negative_elbo_bits": ("Negative ELBO, bits a dimension", "lower is better"),
    "negative_log_likelihood": ("Negative log-likelihood", "lower is better"),
    "negative_log_likelihood_bits": ("Negative log-likelihood, bits a dimension", "lower is better"),
    "rate": ("Rate", ""),
    "distortion": ("Distortion", "lower is better"),
    "active_units": ("Active units", ""),
}


@dataclass(frozen=True)
class Mark:
    """A dot and its whisker, in percent of the row's width; without an interval `start` and `end` are the dot."""

    at: float
    start: float
    end: float
    text: str  # the value and its interval


@dataclass(frozen=True)
class Row:
    """One figure: this release, the one that it is held against, and real images in the samples' place."""

    name: str
    unit: str
    better: Better
    own: Mark
    rival: Mark | None
    floor: float | None
    floor_text: str
    num_samples: int
    num_real: int


@dataclass(frozen=True)
class Curve:
    """One logged metric over the steps, as an SVG polyline's points."""

    name: str
    points: str
    first: str
    last: str
    low: str
    high: str
    steps: int


def rows(figures: Mapping[str, Figure], rival: Mapping[str, Figure] | None) -> list[Row]:
    """A row for each figure whose value is a number, in the order of `FIGURES`, those that are not known there last."""
    order = [*(name for name in FIGURES if name in figures), *sorted(figures.keys() - FIGURES.keys())]
    return [_row(name, figures[name], (rival or {}).get(name)) for name in order if math.isfinite(figures[name].value)]


def curves(lines: Sequence[Mapping[str, float]]) -> list[Curve]:
    """A curve for each logged metric, losses first. Values that are no numbers are left out."""
    names = dict.fromkeys(name for line in lines for name in line if name != "step")
    found = []
    for name in sorted(names, key=lambda name: ("loss" not in name, "grad_norm" in name)):
        points = [(line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]
        if len(points) > 1:
            found.append(_curve(name, points))
    return found


def number(value: float) -> str:
    """Four significant digits, with a minus sign that is one."""
    text = f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _row(name: str, own: Figure, rival: Figure | None) -> Row:
    rival = rival if rival is not None and math.isfinite(rival.value) else None
    ends = [bound for figure in (own, rival) if figure for bound in _bounds(figure)]
    floor = own.floor if own.floor is not None and math.isfinite(own.floor) else None
    ends += [] if floor is None else [floor]
    low, high = min(ends), max(ends)

    def place(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(MARGIN_PERCENT + (100 - 2 * MARGIN_PERCENT) * share, 2)

    def mark(figure: Figure) -> Mark:
        value, start, end = _bounds(figure)
        return Mark(place(value), place(start), place(end), _text(figure))

    words, better = FIGURES.get(name, (name.replace("_", " ").capitalize(), ""))
    return Row(
        name=words,
        unit=own.unit,
        better=better,
        own=mark(own),
        rival=mark(rival) if rival else None,
        floor=None if floor is None else place(floor),
        floor_text="" if floor is None else number(floor),
        num_samples=own.num_samples,
        num_real=own.num_real,
    )


def _bounds(figure: Figure) -> tuple[float, float, float]:
    ends = [end if end is not None and math.isfinite(end) else figure.value for end in (figure.low, figure.high)]
    return figure.value, ends[0], ends[1]


def _text(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return number(figure.value)
    return f"{number(figure.value)} ({number(figure.low)} to {number(figure.high)})"


def _curve(name: str, points: Sequence[tuple[float, float]]) -> Curve:
    every = -(-len(points) // CURVE_POINTS)
    kept = [*points[::every], points[-1]]
    steps, values = [step for step, _ in kept], [value for _, value in kept]
    low, high, last = min(values), max(values), max(steps)
    first_step = min(steps)

    def x(step: float) -> float:
        return CURVE_WIDTH * (step - first_step) / max(1, last - first_step)

    def y(value: float) -> float:
        return CURVE_HEIGHT * (high - value) / (high - low) if high > low else CURVE_HEIGHT / 2

    return Curve(
        name=name,
        points=" ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in kept),
        first=number(values[0]),
        last=number(values[-1]),
        low=number(low),
        high=number(high),
        steps=int(last),
    )
