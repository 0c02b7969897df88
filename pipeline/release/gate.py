"""The gate: is a challenger better than the champion, beyond what chance explains? Pure functions of their figures.

    verdict = decide(recipe.gate, Measured.of(challenger), Measured.of(champion) or None)

Two figures are compared by the 95% interval of their difference, put together from their own intervals, which need
not be symmetric (MOVER: Zou & Donner 2008, 'Construction of confidence limits about effect measures'). For one that
should be low:

    gain     = champion - challenger
    gain_low = gain - sqrt((champion - champion.low)^2 + (challenger.high - challenger)^2)

and the challenger passes with gain_low > margin. It takes the two to be independent; both are measured on the same
real images, whose chance moves both alike, so the gate rather keeps a champion than loses it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.artifacts import Evaluation, Figure, Protocol, Release
from pipeline.errors import RecordError
from pipeline.protocol import differences, reason_of
from pipeline.release.records import Verdict
from pipeline.sections import GateSpec

NEAR_COPIES = "near_copies"  # the figure that `max_near_copies` is held against


@dataclass(frozen=True)
class Bounds:
    """A figure and its 95% interval; where none was computed, low and high are the value."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, figure: Figure) -> "Bounds":
        """A record's figure."""
        low = figure.value if figure.low is None else figure.low
        high = figure.value if figure.high is None else figure.high
        return cls(figure.value, low, high)

    @property
    def mirrored(self) -> "Bounds":
        """The figure with its sign turned, so that lower is better where higher was."""
        return Bounds(-self.value, -self.high, -self.low)


@dataclass(frozen=True)
class Measured:
    """A release as the gate sees it."""

    name: str  # as a person would say it: digits-gan@3
    number: int
    protocol: Protocol
    figures: Mapping[str, Bounds]

    @classmethod
    def of(cls, release: Release, evaluation: Evaluation | None = None) -> "Measured":
        """A release with the figures that it was published with, or with those of another evaluation of its run."""
        measured = evaluation or release
        figures = {name: Bounds.of(figure) for name, figure in measured.figures.items()}
        return cls(f"{release.name}@{release.number}", release.number, measured.protocol, figures)

    def figure(self, name: str, asked_by: str) -> Bounds:
        """One of its figures. Raises RecordError that lists those that there are."""
        if name not in self.figures:
            raise RecordError(
                f"{asked_by}: expected a figure of {self.name} ({', '.join(sorted(self.figures)) or 'it has none'}), "
                f"got {name!r}; name another, or evaluate it again"
            )
        return self.figures[name]


def decide(spec: GateSpec, challenger: Measured, champion: Measured | None) -> Verdict:
    """What the gate says of a challenger; `champion` is None where nothing has the alias.

    Raises RecordError where the gate asks for a figure that was not measured.
    """
    against = champion.number if champion else None
    measured = challenger.figure(spec.metric, "gate.metric")
    missed = _missed_bars(spec, challenger)
    if not math.isfinite(measured.value):
        missed.insert(0, f"{spec.metric} is {measured.value}")
    if missed:
        return Verdict(promoted=False, reason="; ".join(missed), metric=spec.metric, against=against)
    if champion is None:
        return Verdict(promoted=True, reason="the first to stand there", metric=spec.metric, against=None)
    if found := differences(challenger.protocol, champion.protocol):
        reason = (
            f"{challenger.name} and {champion.name} cannot be compared, their protocols differ in {found[0]}: "
            f"{reason_of(found)}; evaluate its run again while {champion.name} stands there, or promote by hand"
        )
        return Verdict(promoted=False, reason=reason, metric=spec.metric, against=against)
    return _compare(spec, measured, champion.figure(spec.metric, "gate.metric"), champion)


def gain_of(challenger: Bounds, champion: Bounds) -> tuple[float, float]:
    """By how much a challenger is better where lower is better, and the lower end of that difference's interval."""
    gain = champion.value - challenger.value
    return gain, gain - math.hypot(champion.value - champion.low, challenger.high - challenger.value)


def _compare(spec: GateSpec, measured: Bounds, standing: Bounds, champion: Measured) -> Verdict:
    lower = spec.direction == "lower"
    gain, gain_low = gain_of(
        measured if lower else measured.mirrored,
        standing if lower else standing.mirrored,
    )
    promoted = gain_low > spec.margin  # False for NaN, too
    short_by = None if promoted else spec.margin - gain_low
    said = f"{spec.metric} {measured.value:.4g} against {standing.value:.4g} of {champion.name}"
    if short_by is not None:
        found = f"better by {gain:.3g}, with 97.5% confidence by {gain_low:.3g}" if gain > 0 else "no better"
        reason = f"{said}: {found}; it must be more than {spec.margin:g}, {short_by:.3g} is missing"
    else:
        reason = f"{said}: better by {gain:.3g}, by {gain_low:.3g} or more with 97.5% confidence"
    return Verdict(
        promoted=promoted,
        reason=reason,
        metric=spec.metric,
        against=champion.number,
        gain=_finite(gain),
        gain_low=_finite(gain_low),
        short_by=_finite(short_by),
    )


def _missed_bars(spec: GateSpec, challenger: Measured) -> list[str]:
    """The bars that hold without a champion, each that is missed as a line."""
    missed = []
    for name, floor in spec.floors.items():
        value = challenger.figure(name, f"gate.floors.{name}").value
        if not value >= floor:
            missed.append(f"{name} {value:.4g} is {floor - value:.3g} below its floor of {floor:g}")
    ceilings = {name: (ceiling, f"gate.ceilings.{name}") for name, ceiling in spec.ceilings.items()}
    if spec.max_near_copies is not None:
        ceilings[NEAR_COPIES] = (spec.max_near_copies, "gate.max_near_copies")
    for name, (ceiling, asked_by) in ceilings.items():
        value = challenger.figure(name, asked_by).value
        if not value <= ceiling:
            missed.append(f"{name} {value:.4g} is {value - ceiling:.3g} above its ceiling of {ceiling:g}")
    return missed


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None
